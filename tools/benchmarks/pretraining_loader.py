"""The loader of DINOv2 pretraining alone: images a second of multi-crop views, without a model.

The loader as the project's runs build it (UnlabelledImages, MultiCropViews, collate_views) with
the default views: two of 224 pixels and eight of 98. The reference draws the same views with
torchvision's transforms on Pillow, straightforwardly; its batches have neither masks nor a
repeatable order. Without --data it makes scenes of 640x480 and of 2048x1024 pixels.

    python tools/benchmarks/pretraining_loader.py --threads 1
    python tools/benchmarks/pretraining_loader.py --data FOLDER --workers 2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Row, import_models, machine, make_parser, print_table, set_up
from loader import make_data
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "dinov2_pretraining"
OURS, REFERENCE = "mmseg_eomt", "torchvision"
GLOBAL, LOCAL, NUM_LOCAL, PATCH = 224, 98, 8, 14
GLOBAL_SCALE, LOCAL_SCALE = (0.32, 1.0), (0.05, 0.32)
# Width, height and number of the scenes.
SETS = ((640, 480, 64), (2048, 1024, 16))
QUICK_SETS = ((80, 60, 8),)


class TorchvisionViews(torch.utils.data.Dataset[Any]):
    """The views of `MultiCropViews` by torchvision, of the images of a folder."""

    def __init__(self, files: list[str]) -> None:
        from torchvision import transforms as T

        def view(size: int, scale: tuple[float, float], blur: float, solarise: float) -> Any:
            bicubic = T.InterpolationMode.BICUBIC
            return T.Compose(
                [
                    T.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
                    T.RandomHorizontalFlip(),
                    T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                    T.RandomGrayscale(0.2),
                    T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur),
                    T.RandomSolarize(128, p=solarise),
                    T.PILToTensor(),
                ]
            )

        self.files = files
        self.first = view(GLOBAL, GLOBAL_SCALE, 1.0, 0.0)
        self.second = view(GLOBAL, GLOBAL_SCALE, 0.1, 0.2)
        self.local = view(LOCAL, LOCAL_SCALE, 0.5, 0.0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.files[index]).convert("RGB")
        large = torch.stack([self.first(image), self.second(image)])
        return large, torch.stack([self.local(image) for _ in range(NUM_LOCAL)])


def torchvision_loader(data: Path, workers: int, batch: int) -> Any:
    """A loader of the reference."""
    from dinov2_pretraining.data.file_list import find_images

    dataset = TorchvisionViews(find_images(data))
    # Permutations one after the other, as ours: no new workers at the end of a small folder.
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=10**6)
    return torch.utils.data.DataLoader(dataset, batch, sampler=sampler, num_workers=workers)


def our_loader(
    data: Path, workers: int, batch: int, *, global_size: int = GLOBAL, local_size: int = LOCAL
) -> Any:
    """A loader as a run of the project builds it."""
    from mmengine.runner import Runner

    views = {
        "global_size": global_size,
        "local_size": local_size,
        "num_local": NUM_LOCAL,
        "global_scale": GLOBAL_SCALE,
        "local_scale": LOCAL_SCALE,
    }
    return Runner.build_dataloader(
        {
            "batch_size": batch,
            "num_workers": workers,
            "sampler": {"type": "StepSampler"},
            "collate_fn": {"type": "collate_views", "patch_size": PATCH},
            "dataset": {
                "type": "UnlabelledImages",
                "data": str(data),
                "pipeline": [{"type": "SeedSample"}, {"type": "MultiCropViews", **views}],
            },
        },
        seed=0,
    )


LOADERS: dict[str, Callable[[Path, int, int], Any]] = {
    REFERENCE: torchvision_loader,
    OURS: our_loader,
}


def measure(data: Path, workers: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds that ``args.images`` images take, in turns."""
    times: dict[str, list[float]] = {name: [] for name in LOADERS}
    count = max(1, args.images // args.batch)
    for _ in range(args.repeats):
        for name, build in LOADERS.items():
            # Made anew each time: workers of an idle loader would go on filling their queue.
            batches = iter(build(data, workers, args.batch))
            for _ in range(2 * workers + 1):  # what the queue holds was made before the clock
                next(batches)
            start = time.perf_counter()
            for _ in range(count):
                next(batches)
            times[name].append((time.perf_counter() - start) / count / args.batch * args.images)
            del batches  # ends its workers
    return times


def run_set(data: Path, title: str, args: argparse.Namespace) -> list[Row]:
    """Measures one folder and prints its tables."""
    rows = []
    for workers in args.workers:
        found = measure(data, workers, args)
        table = [
            Row(f"{name}, {workers} workers", seconds, work=args.images)
            for name, seconds in found.items()
        ]
        print_table(
            f"pretraining loader, {title}, 2 x {GLOBAL} px and {NUM_LOCAL} x {LOCAL} px, batches "
            f"of {args.batch}",
            table,
            reference=f"{REFERENCE}, {workers} workers",
        )
        rows += table
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="folder of images; default: made scenes")
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="(2)")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch (8)")
    parser.add_argument("--images", type=int, default=128, help="images of a repeat (128)")
    args = parser.parse_args(arguments)
    if args.quick:
        args.images, args.batch = 4, 4
    return args


def main(arguments: list[str] | None = None) -> list[list[Row]]:
    """Measures and prints."""
    args = parse(arguments)
    set_up(args)
    import_models()
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    import dinov2_pretraining  # noqa: F401  (registers)

    print(machine(args.device, args.threads))
    if args.data is not None:
        return [run_set(args.data, str(args.data), args)]
    results = []
    for width, height, count in QUICK_SETS if args.quick else SETS:
        with tempfile.TemporaryDirectory() as folder:
            data = make_data(Path(folder), width, height, count).parent / "images"
            results.append(run_set(data, f"scenes of {width}x{height}", args))
    return results


if __name__ == "__main__":
    main()
