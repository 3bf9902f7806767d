"""Validation: images a second of our test step and metric against the reference protocol.

The reference is transformers' EoMT with its image processor (windows, merging, label maps) and
mmseg's IoUMetric; ours is the segmentor's test step (windows of several images share a forward)
with SegmentationMetric. Same weights, pictures, labels and batches; decoding files is left out,
resizing to the window is in. Two tables: the metric alone, and all of it.

    python tools/benchmarks/validation.py --threads 2
    python tools/benchmarks/validation.py --device cuda --model dinov3/vitl16 --images 64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
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
)
from numpy.typing import NDArray
from pair import Shape, make_one, make_pair
from torch import Tensor

STOCK = "mmseg IoUMetric"
METRIC = "SegmentationMetric"
Pictures = list[NDArray[np.uint8]]
Labels = list[Tensor]


def make_data(args: argparse.Namespace) -> tuple[Pictures, Labels]:
    """Pictures ``uint8 [H, W, 3]`` RGB and label maps ``int64 [H, W]`` with 5 % ignored."""
    rng = np.random.default_rng(0)
    shape = (args.height, args.width)
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(args.images)]
    cells = (-(-args.height // 16), -(-args.width // 16))
    labels = []
    for _ in pictures:
        blocks = rng.integers(0, args.classes, cells).repeat(16, 0).repeat(16, 1)
        blocks = blocks[: args.height, : args.width].copy()
        blocks[: args.height // 20] = 255
        labels.append(torch.from_numpy(blocks))
    return pictures, labels


def make_metric(name: str, classes: int) -> Any:
    """A metric that knows its classes and prints no table."""
    from mmengine.logging import MMLogger
    from mmseg.evaluation import IoUMetric

    from mmseg_eomt.evaluation import SegmentationMetric

    if not MMLogger.check_instance_created("benchmark"):
        MMLogger.get_instance("benchmark", log_level="ERROR")
    metric = (IoUMetric if name == STOCK else SegmentationMetric)()
    metric.dataset_meta = {"classes": [str(number) for number in range(classes)]}
    return metric


def score(metric: Any, predictions: Labels, labels: Labels, batch: int) -> dict[str, float]:
    """Feeds batches to a metric as mmengine's loop does; returns its scores."""
    for first in range(0, len(labels), batch):
        samples = [
            {"pred_sem_seg": {"data": p[None]}, "gt_sem_seg": {"data": t[None]}}
            for p, t in zip(
                predictions[first : first + batch], labels[first : first + batch], strict=True
            )
        ]
        metric.process(None, samples)
    scores: dict[str, float] = metric.evaluate(len(labels))
    return scores


def prepare_metric(name: str, args: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """Scoring of predictions that lie on the device, as a function of the turn."""
    _, labels = make_data(args)
    device = torch.device(args.device)
    # Half right. Predictions are int32 of ours and int64 of the reference; each gets its own.
    dtype = torch.int64 if name == STOCK else torch.int32
    torch.manual_seed(0)
    predictions = [
        torch.where(torch.rand(x.shape) < 0.5, x, x.flip(1)).clamp(max=args.classes - 1)
        for x in labels
    ]
    predictions = [x.to(device, dtype) for x in predictions]
    metric = make_metric(name, args.classes)
    return lambda _: score(metric, predictions, labels, args.batch)


def their_validation(
    model: Any, data: tuple[Pictures, Labels], args: argparse.Namespace
) -> Callable[[int], dict[str, float]]:
    """Processor, model, post-processing and IoUMetric."""
    from transformers import EomtImageProcessorPil

    size = {"shortest_edge": args.size, "longest_edge": None}
    processor = EomtImageProcessorPil(size=size, do_split_image=True)
    metric = make_metric(STOCK, args.classes)
    pictures, labels = data
    model.eval().attn_mask_probs.zero_()

    @torch.inference_mode()
    def validate(_: int) -> dict[str, float]:
        for first in range(0, len(pictures), args.batch):
            part = slice(first, first + args.batch)
            inputs = processor(images=pictures[part], return_tensors="pt").to(args.device)
            with autocast(args):
                outputs = model(**inputs)
            maps = processor.post_process_semantic_segmentation(
                outputs, target_sizes=[x.shape[:2] for x in pictures[part]], size=size
            )
            for found, truth in zip(maps, labels[part], strict=True):
                sample = {"pred_sem_seg": {"data": found}, "gt_sem_seg": {"data": truth}}
                metric.process(None, [sample])
        return metric.evaluate(len(pictures))

    return validate


def our_validation(
    model: Any, data: tuple[Pictures, Labels], args: argparse.Namespace
) -> Callable[[int], dict[str, float]]:
    """Transforms, test step and SegmentationMetric."""
    from mmengine.structures import PixelData
    from mmseg.registry import TRANSFORMS
    from mmseg.structures import SegDataSample

    steps = [
        TRANSFORMS.build({"type": "ResizeShortSide", "size": args.size}),
        TRANSFORMS.build({"type": "PackSegInputs"}),
    ]
    metric = make_metric(METRIC, args.classes)
    pictures, labels = data
    model.eval()

    def load(picture: NDArray[np.uint8], truth: Tensor) -> tuple[Tensor, SegDataSample]:
        results: dict[str, Any] = {"img": picture, "ori_shape": picture.shape[:2]}
        for step in steps:
            results = step(results)
        sample = results["data_samples"]
        sample.gt_sem_seg = PixelData(data=truth[None])
        return results["inputs"], sample

    @torch.no_grad()
    def validate(_: int) -> dict[str, float]:
        for first in range(0, len(pictures), args.batch):
            part = slice(first, first + args.batch)
            loaded = [load(*pair) for pair in zip(pictures[part], labels[part], strict=True)]
            inputs, samples = (list(x) for x in zip(*loaded, strict=True))
            with autocast(args):
                results = model.val_step({"inputs": inputs, "data_samples": samples})
            metric.process(None, [sample.to_dict() for sample in results])
        return metric.evaluate(len(pictures))

    return validate


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Mixed precision as asked for, the same for both."""
    dtype = DTYPES[args.dtype]
    return torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32)


def preprocessor() -> dict[str, Any]:
    """ImageNet's statistics, those of the processor."""
    return {
        "type": "EoMTDataPreProcessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }


def prepare_validation(
    name: str, shape: Shape, args: argparse.Namespace
) -> Callable[[int], dict[str, float]]:
    """A contestant alone, for `peak_memory`."""
    make = their_validation if name == REFERENCE else our_validation
    options = {} if name == REFERENCE else {"data_preprocessor": preprocessor()}
    return make(make_one(name, shape, device=args.device, **options), make_data(args), args)


def check(scores: dict[str, dict[str, float]], tolerance: float) -> None:
    """Both must have found the same.

    Raises:
        RuntimeError: If they differ by more than ``tolerance`` percent points.
    """
    first, second = scores.values()
    for key in ("aAcc", "mIoU", "mAcc"):
        if abs(first[key] - second[key]) > tolerance:
            raise RuntimeError(f"{key} differs: {scores}")


def run(
    title: str,
    contestants: dict[str, Callable[[int], dict[str, float]]],
    memory: dict[str, float | None],
    args: argparse.Namespace,
    *,
    tolerance: float,
) -> list[Row]:
    """Times the contestants, checks that their scores agree and prints the table."""
    check({name: validate(0) for name, validate in contestants.items()}, tolerance)
    times = interleave(contestants, repeats=args.repeats, device=args.device, warm_up=0)
    rows = [
        Row(name, times[name], memory[name], work=args.images, extra={}) for name in contestants
    ]
    print_table(title, rows, reference=next(iter(contestants)))
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--model", default="dinov3/vits16", help="FAMILY/ARCH (dinov3/vits16)")
    parser.add_argument("--size", type=int, default=512, help="side of the windows (512)")
    parser.add_argument("--width", type=int, default=683, help="of the pictures (683)")
    parser.add_argument("--height", type=int, default=512, help="of the pictures (512)")
    parser.add_argument("--images", type=int, default=8, help="pictures (8)")
    parser.add_argument("--batch", type=int, default=4, help="pictures a batch (4)")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    args = parser.parse_args(arguments)
    if args.quick:
        args.model = f"{args.model.partition('/')[0]}/tiny"
        args.size, args.width, args.height, args.images, args.batch = 64, 100, 75, 2, 2
        args.queries = 8
    return args


def main(arguments: list[str] | None = None) -> dict[str, list[Row]]:
    """Measures and prints both tables."""
    args = parse(arguments)
    set_up(args)
    import_models()
    print(machine(args.device, args.threads))
    pictures = f"{args.images} pictures of {args.width}x{args.height}, {args.classes} classes"

    def peaks(prepare: Any, names: tuple[str, ...], *rest: Any) -> dict[str, float | None]:
        if args.no_memory:
            return dict.fromkeys(names)
        return {
            name: peak_memory(prepare, name, *rest, device=args.device, threads=args.threads)
            for name in names
        }

    metrics = {name: prepare_metric(name, args) for name in (STOCK, METRIC)}
    memory = peaks(prepare_metric, (STOCK, METRIC), args)
    # IoUMetric rounds to two digits.
    results = {"metric": run(f"metric alone, {pictures}", metrics, memory, args, tolerance=0.011)}

    shape = Shape.parse(
        args.model, size=args.size, queries=args.queries, classes=args.classes, points=128
    )
    ours, reference = make_pair(shape, device=args.device, data_preprocessor=preprocessor())
    data = make_data(args)
    whole = {
        REFERENCE: their_validation(reference, data, args),
        OURS: our_validation(ours, data, args),
    }
    memory = peaks(prepare_validation, (REFERENCE, OURS), shape, args)
    title = f"validation, {args.model}, {pictures}, windows of {args.size}, {args.dtype}"
    # Scores that are almost equal may fall to another class in a few pixels.
    results["whole"] = run(title, whole, memory, args, tolerance=0.5)
    return results


if __name__ == "__main__":
    main()
