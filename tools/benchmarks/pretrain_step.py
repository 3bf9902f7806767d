"""A step of DINOv2 pretraining against a straightforward one with transformers' Dinov2.

Same weights, views and masks; forward of teacher and student, losses, backward, clipping, AdamW,
moving the teacher. The reference takes the global views in one batch and the local ones in another,
and all logits as whole matrices. Its centring is the softmax one. Both losses are printed: they
agree at the first step. Then ours with its own loader: images/s, and the share of the time in
which the step waits for images.

    python tools/benchmarks/pretrain_step.py --threads 2
    python tools/benchmarks/pretrain_step.py --threads 1 --workers 1 --data FOLDER
    python tools/benchmarks/pretrain_step.py --device cuda --model vitl14 --batch 32 --workers 12
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    DTYPES,
    OURS,
    REFERENCE,
    Row,
    import_models,
    interleave,
    machine,
    make_parser,
    peak_memory,
    print_table,
    set_up,
    synchronize,
)
from loader import make_data
from pair import TINY
from pretraining_loader import GLOBAL, LOCAL, NUM_LOCAL, PATCH, PROJECT, our_loader
from torch import Tensor, nn

STUDENT_TEMP, TEACHER_TEMP, MOMENTUM, CENTRE_MOMENTUM = 0.1, 0.07, 0.994, 0.9
Inputs = dict[str, Tensor]


class ReferenceNetwork(nn.Module):
    """transformers' Dinov2 and a projection head with its prototypes."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        from mmseg_eomt.models.architectures import resolve_architecture

        sizes = resolve_architecture("dinov2", our_arch(args))
        config = Dinov2WithRegistersConfig(
            hidden_size=sizes.embed_dims,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.num_heads,
            image_size=args.global_size,
            patch_size=PATCH,
            use_swiglu_ffn=sizes.gated_mlp,
            num_register_tokens=sizes.num_registers,
        )
        self.vit = Dinov2WithRegistersModel._from_config(config, attn_implementation="sdpa")
        self.first_patch = 1 + sizes.num_registers
        self.mlp = nn.Sequential(
            nn.Linear(sizes.embed_dims, 2048),
            nn.GELU(),
            nn.Linear(2048, 2048),
            nn.GELU(),
            nn.Linear(2048, 256),
        )
        self.last_layer = nn.Parameter(torch.randn(args.prototypes, 256) * 0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        """Cosines ``[..., K]``."""
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(self.last_layer, dim=-1))


class Reference(nn.Module):
    """The step as one writes it down from the paper."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.student = ReferenceNetwork(args)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(args.prototypes))
        self.register_buffer("patch_centre", torch.zeros(args.prototypes))

    def loss(self, inputs: Inputs) -> Tensor:
        """DINO + iBOT + 0.1 KoLeo."""
        views, masks = inputs["global_views"], inputs["masks"]
        with torch.no_grad():
            seen = self.teacher.vit(views).last_hidden_state
            logits = self.teacher.logits(seen[:, 0])
            patch_logits = self.teacher.logits(seen[:, self.teacher.first_patch :][masks])
            target = ((logits - self.centre) / TEACHER_TEMP).softmax(-1)
            patch_target = ((patch_logits - self.patch_centre) / TEACHER_TEMP).softmax(-1)
            self.centre.lerp_(logits.float().mean(0), 1 - CENTRE_MOMENTUM)
            self.patch_centre.lerp_(patch_logits.float().mean(0), 1 - CENTRE_MOMENTUM)
        answers = self.student.vit(views, bool_masked_pos=masks).last_hidden_state
        local = self.student.vit(inputs["local_views"]).last_hidden_state[:, 0]
        classes = torch.cat((answers[:, 0], local))
        batch = len(views) // 2
        log = (self.student.logits(classes) / STUDENT_TEMP).log_softmax(-1).split(batch)
        pairs = [
            -(wanted * said).sum(-1).mean()
            for i, wanted in enumerate(target.split(batch))
            for j, said in enumerate(log)
            if i != j
        ]
        hidden = answers[:, self.student.first_patch :][masks]
        patch_log = (self.student.logits(hidden) / STUDENT_TEMP).log_softmax(-1)
        on_patches = -(patch_target * patch_log).sum(-1) @ inputs["masked_weight"]
        spread = sum(self.koleo(view) for view in answers[:, 0].split(batch))
        return sum(pairs) / len(pairs) + on_patches + 0.1 * spread

    @staticmethod
    def koleo(features: Tensor) -> Tensor:
        """Minus the mean log distance to the nearest neighbour."""
        rows = F.normalize(features.float(), dim=-1)
        near = (rows @ rows.t()).fill_diagonal_(-1).argmax(1)
        return -((rows - rows[near]).norm(dim=-1) + 1e-8).log().mean()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the teacher."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.mul_(MOMENTUM).add_(new, alpha=1 - MOMENTUM)


def our_arch(args: argparse.Namespace) -> Any:
    """Name or sizes of the backbone."""
    return {**TINY, "patch_size": PATCH} if args.model == "tiny" else args.model


def make_ours(args: argparse.Namespace) -> Any:
    """The project's model."""
    import_project()
    from dinov2_pretraining.models.student_teacher import DINOv2Pretraining

    return DINOv2Pretraining(
        backbone={"type": "DINOv2", "arch": our_arch(args), "image_size": args.global_size},
        head={"num_prototypes": args.prototypes},
    )


def import_project() -> None:
    """Makes the project's package importable and registers its parts."""
    import_models()
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    import dinov2_pretraining  # noqa: F401


def copy_weights(reference: Reference, ours: Any) -> None:
    """Gives ours the reference's weights, by the files that transformers writes."""
    from mmseg.registry import MODELS

    theirs = reference.student
    with tempfile.TemporaryDirectory() as folder:
        theirs.vit.save_pretrained(folder)
        # What a run with `pretrained` does.
        stored = str(Path(folder) / "model.safetensors")
        encoder = ours.student.encoder
        arch = {"type": "DINOv2", "arch": ours.arch, "image_size": ours.image_size}
        loaded = MODELS.build({**arch, "pretrained": stored})
        loaded.init_weights()
    encoder.backbone.load_state_dict(loaded.state_dict())
    encoder.mask_token.data.copy_(theirs.vit.embeddings.mask_token.data)
    ours.student.head.mlp.load_state_dict(theirs.mlp.state_dict())
    ours.student.head.last_layer.data.copy_(theirs.last_layer.data)
    ours.teacher.load_state_dict(ours.student.state_dict())


def make_inputs(args: argparse.Namespace) -> Inputs:
    """Random views, and masks as the loader draws them."""
    import_project()
    import numpy as np

    from dinov2_pretraining.data.block_masks import masks_of_batch

    side, batch = args.global_size // PATCH, args.batch
    random = np.random.RandomState(0)
    drawn = masks_of_batch(
        2 * batch, (side, side), random=random, probability=0.5, ratio=(0.1, 0.5), min_aspect=0.3
    )
    masks = torch.from_numpy(drawn)
    index = masks.flatten().nonzero().flatten()
    weight = 1.0 / (masks.sum(1)[index // masks.shape[1]] * len(masks)).float()
    torch.manual_seed(1)
    inputs = {
        "global_views": torch.randn(2 * batch, 3, args.global_size, args.global_size),
        "local_views": torch.randn(NUM_LOCAL * batch, 3, args.local_size, args.local_size),
        "masks": masks,
        "masked_index": index,
        "masked_weight": weight,
    }
    return {name: value.to(args.device) for name, value in inputs.items()}


def make_step(
    name: str, model: Any, args: argparse.Namespace, losses: list[Tensor]
) -> Callable[[Inputs], None]:
    """One optimiser step as a function of its views."""
    model.to(args.device).train()
    model.teacher.eval()
    parameters = list(model.student.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=args.device == "cuda")
    dtype = DTYPES[args.dtype]

    def step(inputs: Inputs) -> None:
        with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
            if name == REFERENCE:
                loss = model.loss(inputs)
            else:
                found = model(inputs, mode="loss")
                loss = sum(value for key, value in found.items() if key.startswith("loss_"))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update() if name == REFERENCE else model.update_teacher(MOMENTUM)
        losses.append(loss.detach())

    return step


def prepare_alone(name: str, args: argparse.Namespace) -> Callable[[int], None]:
    """The step of one contestant, for its memory."""
    model = Reference(args) if name == REFERENCE else make_ours(args)
    step, inputs = make_step(name, model, args, []), make_inputs(args)
    return lambda _: step(inputs)


def compare(args: argparse.Namespace) -> tuple[list[Row], Callable[[Inputs], None]]:
    """Measures both steps and prints the table; returns ours for the run with the loader."""
    torch.manual_seed(0)
    reference, ours = Reference(args), make_ours(args)
    ours.arch, ours.image_size = our_arch(args), args.global_size
    copy_weights(reference, ours)
    losses: dict[str, list[Tensor]] = {REFERENCE: [], OURS: []}
    steps = {
        name: make_step(name, model, args, losses[name])
        for name, model in ((REFERENCE, reference), (OURS, ours))
    }
    inputs = make_inputs(args)
    times = interleave(
        {name: lambda _, step=step: step(inputs) for name, step in steps.items()},
        repeats=args.repeats,
        device=args.device,
    )
    rows = []
    for name, found in losses.items():
        memory = None
        if not args.no_memory:
            memory = peak_memory(
                prepare_alone, name, args, device=args.device, threads=args.threads
            )
        extra = {"first loss": f"{found[0].item():.4f}"}
        rows.append(Row(name, times[name], memory, args.batch, extra=extra))
    print_table(
        f"pretraining step, dinov2/{args.model}, {args.batch} images: 2 x {args.global_size} px "
        f"and {NUM_LOCAL} x {args.local_size} px, {args.prototypes} prototypes, {args.dtype}",
        rows,
    )
    first = [found[0].item() for found in losses.values()]
    if abs(first[0] - first[1]) > 0.01 * abs(first[0]):
        raise RuntimeError(f"The two first losses differ: {first}.")
    return rows, steps[OURS]


def with_loader(data: Path, step: Callable[[Inputs], None], args: argparse.Namespace) -> None:
    """Runs our step on what the loader gives and prints the share of waiting."""
    from mmseg.registry import MODELS

    sizes = {"global_size": args.global_size, "local_size": args.local_size}
    normalise = MODELS.build(
        {
            "type": "ViewPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
        }
    ).to(args.device)
    batches = iter(our_loader(data, args.workers, args.batch, **sizes))
    for _ in range(2):  # fills the workers' queue
        step(normalise(next(batches))["inputs"])
    waited = 0.0
    start = time.perf_counter()
    for _ in range(args.steps):
        begin = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - begin
        step(normalise(batch)["inputs"])
    synchronize(args.device)
    total = time.perf_counter() - start
    print(
        f"with the loader, {args.workers} workers: {args.steps * args.batch / total:.2f} images/s, "
        f"{waited / total:.1%} of the time waiting for images"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="vits14", help="architecture of DINOv2 (vits14)")
    parser.add_argument("--batch", type=int, default=4, help="images (4)")
    parser.add_argument("--prototypes", type=int, default=65536, help="(65536)")
    parser.add_argument("--data", type=Path, help="folder of images; default: made scenes")
    parser.add_argument("--workers", type=int, default=1, help="of the loader (1)")
    parser.add_argument("--steps", type=int, default=10, help="with the loader (10)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    args = parser.parse_args(arguments)
    args.global_size, args.local_size = GLOBAL, LOCAL
    if args.quick:
        args.model, args.batch, args.prototypes, args.steps = "tiny", 2, 128, 2
        args.global_size, args.local_size = 56, 28
    return args


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measures and prints."""
    args = parse(arguments)
    set_up(args)
    import_project()
    print(machine(args.device, args.threads))
    rows, step = compare(args)
    if args.data is not None:
        with_loader(args.data, step, args)
        return rows
    with tempfile.TemporaryDirectory() as folder:
        width, height, count = (80, 60, 8) if args.quick else (640, 480, 64)
        with_loader(make_data(Path(folder), width, height, count).parent / "images", step, args)
    return rows


if __name__ == "__main__":
    main()
