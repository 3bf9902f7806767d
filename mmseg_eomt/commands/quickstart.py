"""From nothing to a deployed model: make a dataset, train, test, predict, export, check it all.

    python tools/quickstart.py [--out DIR] [--short]

Every step is a command of the README, printed before it runs. The model starts from random
weights, so the mIoU says that the code learns: it must lie above what one class everywhere, or
any class at random, can reach on the same pictures.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.config_files import config_root

ROOT = config_root().parent
CONFIG = "configs/eomt/tiny_quickstart.py"
# mIoU that a run must reach; a constant picture reaches less than 0.15 on these scenes.
BAR = 0.50
BAR_SHORT = 0.22
SAME = 0.9999
"""Share of pixels at which the exported model says what the checkpoint says."""
SHORT = ["train_cfg.max_iters=60", "train_cfg.val_interval=30"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Make data, train, test, predict, check.")
    parser.add_argument("--out", default="work_dirs/quickstart", help="folder of all results")
    parser.add_argument("--short", action="store_true", help="60 steps, and a lower bar")
    return parser.parse_args(argv)


def run(tool: str, *arguments: str | Path) -> None:
    """Run a tool and end with its exit code if it fails."""
    command = ["python", f"tools/{tool}", *map(str, arguments)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    # One thread a core: more only get in each other's way on small machines.
    env = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), **os.environ}
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, env=env, check=False)
    if done.returncode:
        sys.exit(f"quickstart: `{shlex.join(command)}` ended with exit code {done.returncode}.")


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean IoU of a confusion matrix ``[truth, prediction]``, over classes that occur in it."""
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean())


def check(truth_folder: Path, prediction_folder: Path, bar: float) -> None:
    """Measure the written predictions with NumPy alone; end in an error below the bar."""
    confusion = np.zeros((256, 256), np.int64)
    for path in sorted(truth_folder.glob("*.png")):
        truth = np.asarray(Image.open(path)).astype(np.int64)
        prediction = np.asarray(Image.open(prediction_folder / path.name)).astype(np.int64)
        np.add.at(confusion, (truth.ravel(), prediction.ravel()), 1)
    number = int(np.flatnonzero(confusion.sum(1)).max()) + 1
    constants = []
    for label in range(number):
        constant = np.zeros((number, number), np.int64)
        constant[:, label] = confusion.sum(1)[:number]
        constants.append(mean_iou(constant))
    chance = np.outer(confusion.sum(1)[:number], np.full(number, 1 / number))
    reached = mean_iou(confusion)
    print(
        f"\nmIoU {reached:.3f} on {truth_folder}; the best constant picture has "
        f"{max(constants):.3f}, random classes {mean_iou(chance):.3f}, the bar is {bar:.2f}."
    )
    if reached < bar or bar <= max(constants):
        sys.exit(f"quickstart: mIoU {reached:.3f} is below the bar of {bar:.2f}: it did not learn.")


def check_exported(reference_folder: Path, exported_folder: Path) -> None:
    """Compare the label maps of the exported model with those of the checkpoint."""
    same, pixels = 0, 0
    for path in sorted(reference_folder.glob("*.png")):
        reference = np.asarray(Image.open(path))
        same += int((np.asarray(Image.open(exported_folder / path.name)) == reference).sum())
        pixels += reference.size
    print(f"\nThe exported model gives the same label at {same / pixels:.4%} of {pixels:,} pixels.")
    if same / pixels < SAME:
        sys.exit(f"quickstart: fewer than {SAME:.2%} of the labels are the same.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps."""
    args = parse_args(argv)
    out = Path(args.out).resolve()
    data, training = out / "data", out / "run"
    start = time.perf_counter()
    run("make_dataset.py", data)
    options = ["--cfg-options", *SHORT] if args.short else []
    run("train.py", CONFIG, "--data", data / "data.yaml", "--work-dir", training, *options)
    weights = training / "exported" / "best.safetensors"
    run("test.py", CONFIG, weights, "--data", data / "data.yaml", "--work-dir", out / "test")
    run("predict.py", weights, data / "val" / "images", "--out", out / "predictions")
    check(data / "val" / "masks", out / "predictions" / "masks", BAR_SHORT if args.short else BAR)
    exported = out / "model.onnx"
    run("export.py", weights, "--out", exported, "--data", data / "data.yaml")
    run("predict.py", exported, data / "val" / "images", "--out", out / "predictions_onnx")
    check_exported(out / "predictions" / "masks", out / "predictions_onnx" / "masks")
    print(f"{time.perf_counter() - start:.0f} s. What to look at:")
    for what, where in (
        ("predictions beside the truth", training / "pictures"),
        ("painted pictures", out / "predictions" / "overlays"),
        ("weights to use elsewhere", weights),
        ("the model as ONNX", exported),
        ("curves: tensorboard --logdir", training),
    ):
        print(f"  {what}: {where}")
