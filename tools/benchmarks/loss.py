"""Loss and matching alone, forward and backward, against transformers' EoMT criterion.

Both see the same logits and labels. The reference is handed its one-hot masks ready-made, so that
making them (which our loss does without) is not counted against it. Each contestant runs in a
process of its own on a CPU, where peak memory can only be read per process.

    python tools/benchmarks/loss.py --device cpu --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CONTESTANTS = ("transformers", "mmseg_eomt")


def make_labels(args: argparse.Namespace) -> Tensor:
    """Label maps ``[B, S, S]`` of blocks, with a fixed number of classes an image."""
    blocks = args.size // 16
    labels = torch.empty(args.images, blocks, blocks, dtype=torch.long)
    for image in labels:
        classes = torch.randperm(args.classes)[: args.classes_per_image]
        image.copy_(classes[torch.randint(len(classes), image.shape)])
        image.view(-1)[: len(classes)] = classes
    return labels.repeat_interleave(16, 1).repeat_interleave(16, 2)


def make_predictions(args: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Smooth mask logits ``[B, Q, S/4, S/4]`` and class logits, all leaves that want a gradient."""
    predictions = []
    for _ in range(args.predictions):
        coarse = torch.randn(args.images, args.queries, args.size // 32, args.size // 32) * 5
        masks = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        classes = torch.randn(args.images, args.queries, args.classes + 1)
        dtype = getattr(torch, args.dtype)
        predictions.append(
            tuple(x.to(args.device, dtype).requires_grad_() for x in (masks, classes))
        )
    return predictions


def our_step(
    args: argparse.Namespace, predictions: list[tuple[Tensor, Tensor]], labels: Tensor
) -> Callable[[int], Tensor]:
    """A function that computes our loss for a step number."""
    from mmseg_eomt.models.mask_loss import MaskClassificationLoss
    from mmseg_eomt.models.step import StepRandom

    criterion = MaskClassificationLoss(args.classes, num_points=args.points).to(args.device)

    def step(number: int) -> Tensor:
        losses = criterion(predictions, labels, random=StepRandom(step=number))
        return torch.stack(list(losses.values())).sum()

    return step


def reference_step(
    args: argparse.Namespace, predictions: list[tuple[Tensor, Tensor]], labels: Tensor
) -> Callable[[int], Tensor]:
    """A function that computes the reference's loss for a step number."""
    from transformers import EomtConfig
    from transformers.models.eomt.modeling_eomt import EomtLoss

    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    config = EomtConfig(train_num_points=args.points, num_labels=args.classes)
    criterion = EomtLoss(config, weights).to(args.device)
    ids = [image.unique() for image in labels]
    masks = [(image == c[:, None, None]).float() for image, c in zip(labels, ids, strict=True)]

    def step(number: int) -> Tensor:
        torch.manual_seed(number)
        total = torch.zeros((), device=args.device)
        for mask_logits, class_logits in predictions:
            # float(): transformers' criterion needs one dtype for masks and points.
            losses = criterion(mask_logits.float(), class_logits.float(), masks, ids)
            total = total + sum(weights[name] * loss for name, loss in losses.items())
        return total

    return step


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Times in seconds of forward and backward, and the peak of memory above the inputs in MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    labels, predictions = make_labels(args).to(args.device), make_predictions(args)
    make = our_step if args.only == "mmseg_eomt" else reference_step
    step = make(args, predictions, labels)
    leaves = [x for prediction in predictions for x in prediction]
    cuda = args.device == "cuda"
    base = torch.cuda.memory_allocated() if cuda else _resident()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    forward, backward, values = [], [], []
    for number in range(args.repeats + 1):
        start = _now(cuda)
        loss = step(number)
        middle = _now(cuda)
        torch.autograd.grad(loss, leaves)
        end = _now(cuda)
        values.append(loss.item())
        if number:  # the first one warms up
            forward.append(middle - start)
            backward.append(end - middle)
    peak = torch.cuda.max_memory_allocated() if cuda else _peak_resident()
    return {
        "forward": forward,
        "backward": backward,
        "memory": (peak - base) / 2**20,
        "loss": statistics.mean(values),
    }


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run each contestant in its own process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="side of the label maps in pixels")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--classes-per-image", type=int, default=10)
    parser.add_argument("--predictions", type=int, default=5)
    parser.add_argument("--points", type=int, default=12544)
    parser.add_argument("--only", choices=CONTESTANTS, help="measure one and print JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args)))
        return
    results = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} CPU threads"
    print(
        f"loss and matching, {where}, torch {torch.__version__}, {args.dtype}: "
        f"{args.images} images of {args.size} px, {args.queries} queries, {args.classes} classes "
        f"({args.classes_per_image} an image), {args.predictions} predictions, {args.points} points"
    )
    columns = ("forward ms", "backward ms", "total ms", "spread ms", "memory MiB", "mean loss")
    print(f"{'':14}" + "".join(f"{column:>13}" for column in columns))
    totals = {}
    for name, result in results.items():
        both = [f + b for f, b in zip(result["forward"], result["backward"], strict=True)]
        totals[name] = statistics.median(both)
        figures = (
            statistics.median(result["forward"]) * 1e3,
            statistics.median(result["backward"]) * 1e3,
            totals[name] * 1e3,
            (max(both) - min(both)) * 1e3,
            result["memory"],
            result["loss"],
        )
        print(f"{name:14}" + "".join(f"{figure:13.2f}" for figure in figures))
    memory = results["mmseg_eomt"]["memory"] / results["transformers"]["memory"]
    speed = totals["transformers"] / totals["mmseg_eomt"]
    print(f"ratio: {speed:.2f} times as fast, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
