"""A training step (forward, loss, backward, clipping, AdamW) against transformers' EoMT.

Same weights, images and labels; the same optimiser and clipping for both. The reference gets its
one-hot masks ready-made. Ours runs as it is and with memory saved by recomputing. "masks 1" masks
the attention of every query, as training starts, "masks 0" is the end of the annealing.

    python tools/benchmarks/train_step.py --device cpu --threads 2
    python tools/benchmarks/train_step.py --device cuda --model dinov3/vitl16 --batch 16 --compile
    python tools/benchmarks/train_step.py --device cuda --model dinov3/vitl16 --batch 4 \\
        --size 1024 --queries 200 --compile
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import (
    DTYPES,
    OURS,
    REFERENCE,
    Row,
    interleave,
    machine,
    make_parser,
    matrix_rate,
    peak_memory,
    print_table,
    set_up,
)
from pair import Shape, forward_flops, make_one, make_pair
from torch import Tensor

MODELS = ("dinov2/vits14", "dinov3/vits16")
CLASSES_PER_IMAGE = 10
# Rows of ours and the options that make them, from fast to small.
UPSCALE = {"decode_head": {"recompute_upscale": True}}
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    f"{OURS}, recompute_upscale": UPSCALE,
    f"{OURS}, also with_cp=True": {**UPSCALE, "backbone": {"with_cp": True}},
}


def make_batch(shape: Shape, images: int, device: str) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, S, S]`` and label maps ``[B, S, S]`` of blocks of 10 classes an image."""
    torch.manual_seed(1)
    cells = max(1, shape.size // 32)
    labels = torch.empty(images, cells, cells, dtype=torch.long)
    for image in labels:
        classes = torch.randperm(shape.classes)[:CLASSES_PER_IMAGE]
        image.copy_(classes[torch.randint(len(classes), image.shape)])
    side = shape.size // cells
    labels = labels.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return torch.randn(images, 3, shape.size, shape.size, device=device), labels.to(device)


def make_step(
    name: str, model: Any, batch: tuple[Tensor, Tensor], args: argparse.Namespace, losses: list
) -> Callable[[int], None]:
    """One training step of a model as a function of the step's number; losses are collected."""
    images, labels = batch
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=args.device == "cuda")
    dtype = DTYPES[args.dtype]
    scaler = torch.amp.GradScaler(args.device, enabled=dtype == torch.float16)
    make_loss = their_loss if name == REFERENCE else our_loss
    compute = make_loss(model, images, labels)

    def step(number: int) -> None:
        with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
            loss = compute(number)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())

    return step


def our_loss(model: Any, images: Tensor, labels: Tensor) -> Callable[[int], Tensor]:
    """The summed losses of our model."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_sem_seg=PixelData(data=image[None])) for image in labels]

    def compute(number: int) -> Tensor:
        model.decode_head.set_step(number, seed=0)
        losses = model.loss(images, samples)
        return torch.stack([value for key, value in losses.items() if "loss" in key]).sum()

    return compute


def their_loss(model: Any, images: Tensor, labels: Tensor) -> Callable[[int], Tensor]:
    """The reference's loss, with masks made beforehand."""
    ids = [image.unique() for image in labels]
    masks = [(image == c[:, None, None]).float() for image, c in zip(labels, ids, strict=True)]

    def compute(number: int) -> Tensor:
        torch.manual_seed(number)
        return model(pixel_values=images, mask_labels=masks, class_labels=ids).loss

    return compute


def set_masks(name: str, model: Any, probability: float) -> None:
    """How likely a query's attention is masked, in every joint block."""
    if name == REFERENCE:
        model.attn_mask_probs.fill_(probability)
    else:
        model.decode_head.set_mask_probs([probability] * model.decode_head.num_joint_blocks)


def compile_model(name: str, model: Any) -> None:
    """Compiles block by block, the form that both models allow in training."""
    if name == REFERENCE:
        for layer in model.layers:
            layer.compile()
        return
    from mmseg_eomt.models.eomt_segmentor import compile_blocks

    compile_blocks(model)


def prepare_alone(
    name: str, shape: Shape, probability: float, args: argparse.Namespace
) -> Callable[[int], None]:
    """A contestant's step, for `peak_memory`."""
    model = make_one(name, shape, device=args.device, **VARIANTS.get(name, {}))
    set_masks(name, model, probability)
    if args.compile:
        compile_model(name, model)
    return make_step(name, model, make_batch(shape, args.batch, args.device), args, [])


def run_model(shape: Shape, args: argparse.Namespace, rate: float) -> dict[float, list[Row]]:
    """Measures one model; rows by mask probability, the reference first."""
    ours, reference = make_pair(shape, device=args.device)
    models = {REFERENCE: reference, OURS: ours}
    for name in list(VARIANTS)[1 : args.variants]:
        models[name] = make_one(name, shape, device=args.device, **VARIANTS[name])
        models[name].load_state_dict(ours.state_dict())
    batch = make_batch(shape, args.batch, args.device)
    losses: dict[str, list[Tensor]] = {name: [] for name in models}
    steps = {
        name: make_step(name, model, batch, args, losses[name]) for name, model in models.items()
    }
    if args.compile:
        for name, model in models.items():
            compile_model(name, model)
    flops = 3 * args.batch * forward_flops(shape, predictions=shape.sizes.num_joint_blocks + 1)
    results = {}
    for probability in args.masks:
        for name, model in models.items():
            set_masks(name, model, probability)
            losses[name].clear()
        times = interleave(
            steps, repeats=args.repeats, device=args.device, warm_up=3 if args.compile else 1
        )
        rows = []
        for name in models:
            memory = None
            if not args.no_memory:
                memory = peak_memory(
                    prepare_alone,
                    *(name, shape, probability, args),
                    device=args.device,
                    threads=args.threads,
                )
            loss = statistics.mean(value.item() for value in losses[name])
            extra = {"mean loss": f"{loss:.3f}"}
            rows.append(Row(name, times[name], memory, args.batch, flops, extra))
        results[probability] = rows
        weights = sum(p.numel() for p in ours.parameters()) * 16 / 2**20
        print_table(
            f"training step, {shape.family}/{shape.arch} at patch {shape.patch_size}, "
            f"{args.batch} images of {shape.size} px, {shape.queries} queries, {shape.classes} "
            f"classes ({CLASSES_PER_IMAGE} an image), masks {probability:g}, {args.dtype}"
            + (", blocks compiled" if args.compile else ""),
            rows,
            rate=rate,
            note=f"Weights, gradients and optimiser states are {weights:.0f} MiB of each peak.",
        )
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=MODELS, help="FAMILY/ARCH, one or more")
    parser.add_argument("--size", type=int, default=512, help="side of the images (512)")
    parser.add_argument("--batch", type=int, default=2, help="images (2)")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--points", type=int, default=12544)
    parser.add_argument("--masks", type=float, nargs="+", default=[1.0, 0.0], help="(1 0)")
    parser.add_argument(
        "--variants",
        type=int,
        choices=range(1, len(VARIANTS) + 1),
        default=2,
        help="how many of these (2):\n" + "\n".join(VARIANTS),
    )
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    args = parser.parse_args(arguments)
    if args.quick:
        args.model = [f"{name.partition('/')[0]}/tiny" for name in args.model]
        args.size, args.queries, args.points = 64, 8, 128
    if args.compile and args.variants > 2:
        args.variants = 2  # compiled blocks choose by themselves what they recompute
    return args


def main(arguments: list[str] | None = None) -> dict[str, dict[float, list[Row]]]:
    """Measures and prints a table for each model and mask probability."""
    args = parse(arguments)
    set_up(args)
    rate = matrix_rate(args.device, args.dtype, quick=args.quick)
    print(machine(args.device, args.threads))
    print(f"matrix rate {rate / 1e12:.3f} TFLOP/s in {args.dtype}")
    sizes = {name: getattr(args, name) for name in ("size", "queries", "classes", "points")}
    return {name: run_model(Shape.parse(name, **sizes), args, rate) for name in args.model}


if __name__ == "__main__":
    main()
