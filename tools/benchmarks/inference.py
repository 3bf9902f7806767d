"""The network alone (image to mask and class logits) against transformers' EoMT.

Same weights and images. The reference has its masks annealed away, as released checkpoints do, so
that it too makes only the last prediction. Ours is as `load_model` gives it ("mmseg_eomt") and
after `optimize_for_inference` with the same precision and compilation as the reference.

    python tools/benchmarks/inference.py --device cpu --threads 2
    python tools/benchmarks/inference.py --device cuda --model dinov3/vitl16 --batch 1 16 --compile
"""

from __future__ import annotations

import argparse
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
OPTIMISED = f"{OURS}, optimised"
HALF = {"bfloat16": "bf16", "float16": "fp16", "float32": None}


def forward(name: str, model: Any, images: Tensor, args: argparse.Namespace) -> Any:
    """A forward pass as a function of the turn; the model is changed to what ``name`` says."""
    from mmseg_eomt import optimize_for_inference

    mode = args.compile_mode if args.compile else None
    if name == OPTIMISED:
        optimize_for_inference(model, dtype=HALF[args.dtype], compile=mode)
    elif name == OURS:
        model.to(DTYPES[args.dtype])
    else:
        model.attn_mask_probs.zero_()
        model.to(DTYPES[args.dtype])
        if args.compile:
            modes = {"default": "reduce-overhead" if args.device == "cuda" else "default"}
            model = torch.compile(model, dynamic=False, mode=modes.get(mode, mode))
    images = images.to(DTYPES[args.dtype])

    @torch.inference_mode()
    def run(_: int) -> Any:
        return model(pixel_values=images) if name == REFERENCE else model.network(images)

    return run


def make_images(shape: Shape, batch: int, device: str) -> Tensor:
    """Noise ``[B, 3, S, S]``: no time depends on what is seen."""
    torch.manual_seed(1)
    return torch.randn(batch, 3, shape.size, shape.size, device=device)


def prepare_alone(
    name: str, shape: Shape, batch: int, args: argparse.Namespace
) -> Callable[[int], Any]:
    """A contestant's forward pass, for `peak_memory`."""
    model = make_one(name.split(",")[0], shape, device=args.device).eval()
    return forward(name, model, make_images(shape, batch, args.device), args)


def run_model(shape: Shape, batch: int, args: argparse.Namespace, rate: float) -> list[Row]:
    """Measures one model at one batch size."""
    ours, reference = make_pair(shape, device=args.device)
    optimised, _ = make_pair(shape, device=args.device)
    images = make_images(shape, batch, args.device)
    models = {REFERENCE: reference, OURS: ours, OPTIMISED: optimised}
    work = {name: forward(name, model, images, args) for name, model in models.items()}
    times = interleave(
        work, repeats=args.repeats, device=args.device, warm_up=3 if args.compile else 1
    )
    rows = []
    for name in models:
        memory = None
        if not args.no_memory:
            memory = peak_memory(
                prepare_alone,
                *(name, shape, batch, args),
                device=args.device,
                threads=args.threads,
            )
        rows.append(Row(name, times[name], memory, batch, batch * forward_flops(shape)))
    print_table(
        f"inference, {shape.family}/{shape.arch} at patch {shape.patch_size}, {batch} images of "
        f"{shape.size} px, {shape.queries} queries, {shape.classes} classes, {args.dtype}"
        + (f", compiled ({args.compile_mode}; not the plain {OURS})" if args.compile else ""),
        rows,
        rate=rate,
    )
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--model", nargs="+", default=MODELS, help="FAMILY/ARCH, one or more")
    parser.add_argument("--size", type=int, default=512, help="side of the images (512)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2], help="images (1 2)")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--compile", action="store_true", help="compile reference and optimised")
    parser.add_argument("--compile-mode", choices=["default", "max-autotune"], default="default")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    args = parser.parse_args(arguments)
    if args.quick:
        args.model = [f"{name.partition('/')[0]}/tiny" for name in args.model]
        args.size, args.queries, args.batch = 64, 8, args.batch[:1]
    return args


def main(arguments: list[str] | None = None) -> dict[tuple[str, int], list[Row]]:
    """Measures and prints a table for each model and batch size."""
    args = parse(arguments)
    set_up(args)
    rate = matrix_rate(args.device, args.dtype, quick=args.quick)
    print(machine(args.device, args.threads))
    print(f"matrix rate {rate / 1e12:.3f} TFLOP/s in {args.dtype}")
    sizes = {name: getattr(args, name) for name in ("size", "queries", "classes")}
    return {
        (name, batch): run_model(Shape.parse(name, **sizes), batch, args, rate)
        for name in args.model
        for batch in args.batch
    }


if __name__ == "__main__":
    main()
