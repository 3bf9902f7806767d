"""What DDP costs by itself: steps of a run in a group of one process against those without a group.

Two runners of the same model, images and optimiser make whole training steps in turns, as
tools/train.py makes them (forward, loss, backward, clipping, AdamW), in one process. The script
stops if their losses differ.

    python tools/benchmarks/ddp_overhead.py --threads 2
    python tools/benchmarks/ddp_overhead.py --device cuda --model dinov3/vitl16 --batch 16
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import Row, interleave, machine, make_parser, print_table, set_up
from pair import Shape, make_ours
from torch import Tensor, distributed

ALONE = "no group"
DDP = "DDP, 1 process"
# A group may cost this much of a step on a GPU.
BAR = 1.03
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def make_samples(shape: Shape, images: int) -> list[dict[str, Any]]:
    """Images ``uint8 [3, S, S]`` and label maps ``[1, S, S]`` of blocks of 10 classes an image."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    torch.manual_seed(1)
    cells = max(1, shape.size // 32)
    side = shape.size // cells
    samples = []
    for number in range(images):
        classes = torch.randperm(shape.classes)[:10]
        blocks = classes[torch.randint(len(classes), (cells, cells))]
        labels = blocks.repeat_interleave(side, 0).repeat_interleave(side, 1)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels[None]))
        sample.set_metainfo({"img_path": f"{number}.png", "img_shape": (shape.size, shape.size)})
        pixels = torch.randint(0, 256, (3, shape.size, shape.size), dtype=torch.uint8)
        samples.append({"inputs": pixels, "data_samples": sample})
    return samples


def make_runner(name: str, shape: Shape, folder: str, args: argparse.Namespace) -> Any:
    """A runner whose next step can be made."""
    from mmseg_eomt.engine.runner import SegmentationRunner

    hooks = ("runtime_info", "timer", "logger", "param_scheduler", "checkpoint", "sampler_seed")
    images = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    torch.manual_seed(0)
    runner = SegmentationRunner(
        model=make_ours(shape, data_preprocessor={"type": "EoMTDataPreProcessor", **images}),
        work_dir=folder,
        train_dataloader={
            "batch_size": args.batch,
            "num_workers": 0,
            "dataset": make_samples(shape, args.batch),
            "sampler": {"type": "StepSampler", "seed": 0},
            "collate_fn": {"type": "pseudo_collate"},
        },
        train_cfg={
            "type": "AccumulationTrainLoop",
            "max_iters": 1_000_000,
            "global_batch_size": args.batch,
            "val_interval": 1_000_000,
        },
        optim_wrapper={
            "type": "MixedPrecisionOptimWrapper",
            "precision": PRECISIONS[args.dtype],
            "optimizer": {"type": "AdamW", "lr": 1e-5},
        },
        default_hooks=dict.fromkeys(hooks),
        default_scope="mmseg",
        launcher="pytorch" if name == DDP else "none",
        env_cfg={"dist_cfg": {"backend": "nccl"}},
        experiment_name=name,
        randomness={"seed": 0},
        log_level="ERROR",
    )
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.train_loop._prepare_optimizer()
    return runner


def make_step(runner: Any, losses: list[Tensor]) -> Callable[[int], None]:
    """One training step as a function of the turn; losses are collected."""
    from mmengine.hooks import Hook

    class Collect(Hook):  # type: ignore[misc]
        def after_train_iter(self, runner: Any, *args: Any, outputs: Any, **kwargs: Any) -> None:
            losses.append(outputs["loss"])

    runner.register_hook(Collect())
    runner.model.train()

    def step(_: int) -> None:
        runner.train_loop.run_iter(runner.train_loop._next_batches())

    return step


@contextmanager
def group_of_one() -> Iterator[None]:
    """The variables that torchrun would set for one process; ends the group that used them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    one["MASTER_PORT"] = str(port)
    before = dict(os.environ)
    os.environ.update(one)
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("--model", default="dinov3/vits16", help="FAMILY/ARCH (dinov3/vits16)")
    parser.add_argument("--size", type=int, default=512, help="side of the images (512)")
    parser.add_argument("--batch", type=int, default=2, help="images (2)")
    args = parser.parse_args(arguments)
    if args.quick:
        args.model, args.size = f"{args.model.partition('/')[0]}/tiny", 64
    return args


def main(arguments: list[str] | None = None) -> float:
    """Measures, prints a table and returns how many times as long a step takes with DDP."""
    args = parse(arguments)
    set_up(args)
    family, _, arch = args.model.partition("/")
    shape = Shape(family, arch, size=args.size)
    losses: dict[str, list[Tensor]] = {ALONE: [], DDP: []}
    with tempfile.TemporaryDirectory() as folder, group_of_one():
        runners = {name: make_runner(name, shape, folder, args) for name in losses}
        backend = distributed.get_backend()
        steps = {name: make_step(runner, losses[name]) for name, runner in runners.items()}
        times = interleave(steps, repeats=args.repeats, device=args.device, warm_up=3)
    for number, (one, other) in enumerate(zip(losses[ALONE], losses[DDP], strict=True)):
        if abs(float(one) - float(other)) > 1e-3 * abs(float(one)):
            sys.exit(f"step {number}: loss {float(one)} without a group, {float(other)} with DDP.")
    rows = [Row(name, times[name], None, args.batch) for name in losses]
    print(machine(args.device, args.threads))
    print_table(
        f"training step, {args.model}, {args.batch} images of {args.size} px, {args.dtype}, "
        f"group over {backend}",
        rows,
        reference=ALONE,
    )
    ratio = rows[1].median / rows[0].median
    print(f"With DDP a step takes {ratio:.3f} times as long (on a GPU at most {BAR} is wanted).")
    return ratio


if __name__ == "__main__":
    main()
