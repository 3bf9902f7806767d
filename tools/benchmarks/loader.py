"""The training data loader alone: images a second, milliseconds by transform, share of a step.

The pipeline of configs/_base_/datasets/folder.py on a FolderSegDataset, in a loader as training
builds it, without a model. The reference is mmseg's own pipeline of ADE20K's kind on the same
files; its augmentations differ in what they draw, not in kind (scale, crop, flip, colours).
Without --data it makes scenes of 480x360 and of 2048x1024 pixels in a temporary folder.

    python tools/benchmarks/loader.py --threads 1
    python tools/benchmarks/loader.py --data DATA.yaml --crop 512 --step-seconds 0.4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, import_models, machine, make_parser, print_table, set_up
from rich.console import Console
from rich.table import Table

TOOLS = Path(__file__).resolve().parents[1]
STOCK = "mmseg"
OURS = "mmseg_eomt"
# Width, height and number of the scenes, and the crop trained on.
SETS = ((480, 360, 32, 512), (2048, 1024, 8, 1024))
QUICK_SETS = ((48, 36, 4, 32),)


def make_data(folder: Path, width: int, height: int, count: int) -> Path:
    """Scenes of tools/make_dataset.py, all of one size; returns their data.yaml."""
    from mmseg_eomt.commands import make_dataset

    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image, mask = make_dataset.make_scene((0, index), width, height)
        image.save(folder / "images" / f"{index}.jpg", quality=92)
        mask.save(folder / "masks" / f"{index}.png")
    lines = ["train: {images: images, masks: masks}", "classes:"]
    lines += [f"  {label}: {name}" for label, name in enumerate(make_dataset.CLASSES)]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.yaml"


def our_dataset(data: Path, crop: int) -> dict[str, Any]:
    """Config of the dataset with the pipeline that folder configs train with."""
    from mmengine.config import Config

    config = Config.fromfile(TOOLS.parent / "configs" / "_base_" / "datasets" / "folder.py")
    dataset = config.train_dataloader.dataset.to_dict()
    dataset["data"] = str(data)
    for step in dataset["pipeline"]:
        if step["type"] == "ScaleJitterCrop":
            step["size"] = (crop, crop)
    return dataset


def stock_dataset(data: Path, crop: int) -> dict[str, Any]:
    """Config of mmseg's pipeline (its ade20k.py) on the same files."""
    from mmseg_eomt.datasets.data_description import load_data

    description = load_data(str(data), check_splits=["train"])
    folders = description.folders("train")[0]
    suffix = next(path.suffix for path in sorted(Path(folders.images).iterdir()) if path.is_file())
    return {
        "type": "BaseSegDataset",
        "img_suffix": suffix,
        "seg_map_suffix": ".png",
        "data_prefix": {"img_path": str(folders.images), "seg_map_path": str(folders.masks)},
        "metainfo": {"classes": description.classes, "palette": description.palette},
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {
                "type": "RandomResize",
                "scale": (4 * crop, crop),
                "ratio_range": (0.5, 2.0),
                "keep_ratio": True,
            },
            {"type": "RandomCrop", "crop_size": (crop, crop), "cat_max_ratio": 0.75},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"},
            {"type": "PackSegInputs"},
        ],
    }


def batches(dataset: dict[str, Any], workers: int, batch: int) -> Iterator[Any]:
    """An endless loader as training makes it."""
    from mmengine.runner import Runner

    sampler = {"type": "StepSampler"}
    if dataset["type"] == "BaseSegDataset":
        sampler = {"type": "InfiniteSampler", "shuffle": True}
    loader = Runner.build_dataloader(
        {
            "batch_size": batch,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "sampler": sampler,
            "dataset": dataset,
        },
        seed=0,
    )
    while True:
        yield from loader


def measure(
    datasets: dict[str, dict[str, Any]], workers: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds that ``args.images`` images take, in turns, each loader idle in the other's."""
    times: dict[str, list[float]] = {name: [] for name in datasets}
    count = max(1, args.images // args.batch)
    for _ in range(args.repeats):
        for name, dataset in datasets.items():
            # Made anew each time: workers of an idle loader would go on filling their queue.
            iterator = batches(dataset, workers, args.batch)
            for _ in range(2 * workers + 1):  # what the queue holds was made before the clock
                next(iterator)
            start = time.perf_counter()
            for _ in range(count):
                next(iterator)
            times[name].append((time.perf_counter() - start) / count / args.batch * args.images)
            iterator.close()
    return times


def time_transforms(dataset: dict[str, Any], images: int) -> dict[str, list[float]]:
    """Seconds of each step of the pipeline for each of ``images`` samples, in this process."""
    from mmseg.registry import DATASETS

    built = DATASETS.build(dataset)
    built.full_init()
    times: dict[str, list[float]] = {}
    np.random.seed(0)
    for number in range(images + 1):
        sample = built.get_data_info(number % len(built))
        for index, transform in enumerate(built.pipeline.transforms):
            start = time.perf_counter()
            sample = transform(sample)
            if number:  # the first one warms up
                name = f"{index + 1} {type(transform).__name__}"
                times.setdefault(name, []).append(time.perf_counter() - start)
    return times


def print_transforms(title: str, times: dict[str, dict[str, list[float]]]) -> None:
    """One table with the mean milliseconds of each transform of each pipeline."""
    table = Table(title=title, title_justify="left")
    for column in ("pipeline", "transform", "mean ms", "slowest ms", "share"):
        table.add_column(column, justify="left" if column in ("pipeline", "transform") else "right")
    for name, steps in times.items():
        whole = sum(sum(seconds) for seconds in steps.values())
        for step, seconds in steps.items():
            mean = sum(seconds) / len(seconds)
            cells = f"{mean * 1e3:.2f}", f"{max(seconds) * 1e3:.2f}", f"{sum(seconds) / whole:.0%}"
            table.add_row(name, step, *cells)
        table.add_row(name, "all", f"{whole / len(seconds) * 1e3:.2f}", "", "", end_section=True)
    Console(width=130).print(table)


def measure_step(crop: int, args: argparse.Namespace) -> float:
    """Seconds of our training step on ``args.batch`` images, by train_step.py's own measure."""
    from common import OURS as MODEL
    from common import interleave
    from pair import Shape, make_one
    from train_step import make_batch, make_step, set_masks

    shape = Shape("dinov3", "tiny" if args.quick else "vits16", size=crop)
    model = make_one(MODEL, shape, device=args.device)
    set_masks(MODEL, model, 1.0)
    step = make_step(MODEL, model, make_batch(shape, args.batch, args.device), args, [])
    return sorted(interleave({"step": step}, repeats=3, device=args.device)["step"])[1]


def run_set(data: Path, crop: int, title: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one dataset and prints its tables."""
    datasets = {STOCK: stock_dataset(data, crop), OURS: our_dataset(data, crop)}
    step_seconds = args.step_seconds or measure_step(crop, args)
    rows = []
    for workers in args.workers:
        for name, seconds in measure(datasets, workers, args).items():
            rows.append(Row(f"{name}, {workers} workers", seconds, work=args.images))
            share = rows[-1].median / args.images * args.batch / step_seconds
            rows[-1].extra = {"share of a step": f"{share:.1%}"}
    for workers in args.workers:
        print_table(
            f"data loader, {title}, crops of {crop} px, batches of {args.batch}",
            [row for row in rows if row.name.endswith(f" {workers} workers")],
            reference=f"{STOCK}, {workers} workers",
            note=f"A step on {args.batch} images takes {step_seconds:.3f} s"
            + (" (given)." if args.step_seconds else f" here (dinov3/vits16, {args.dtype})."),
        )
    transforms = {name: time_transforms(dataset, args.images) for name, dataset in datasets.items()}
    print_transforms(f"by transform, {title}, crops of {crop} px, one process", transforms)
    return {"rows": rows, "transforms": transforms}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="data.yaml of a dataset; default: made scenes")
    parser.add_argument("--crop", type=int, default=512, help="with --data: crop in pixels (512)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(1 2)")
    parser.add_argument("--batch", type=int, default=2, help="images of a batch and step (2)")
    parser.add_argument("--images", type=int, default=64, help="images of a repeat (64)")
    parser.add_argument("--step-seconds", type=float, help="of a training step; default: measured")
    args = parser.parse_args(arguments)
    if args.quick:
        args.images, args.workers = 4, [1]
    return args


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures and prints."""
    args = parse(arguments)
    set_up(args)
    import_models()
    print(machine(args.device, args.threads))
    if args.data is not None:
        return [run_set(args.data, args.crop, str(args.data), args)]
    results = []
    for width, height, count, crop in QUICK_SETS if args.quick else SETS:
        with tempfile.TemporaryDirectory() as folder:
            data = make_data(Path(folder), width, height, count)
            results.append(run_set(data, crop, f"scenes of {width}x{height}", args))
    return results


if __name__ == "__main__":
    main()
