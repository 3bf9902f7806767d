"""Measuring whatever predicts image files against the masks of a dataset.

Shape legend: K classes, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.datasets.file_pairs import check_headers, every_nth, find_pairs
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.evaluation.confusion import class_scores, count_confusion
from mmseg_eomt.images.reading import read_mask


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a dataset.

    Attributes:
        classes (tuple[str, ...]): K names.
        confusion (ndarray): Pixels ``int64 [K, K]``; rows are true classes.
        images (int): How many were predicted.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    images: int

    @property
    def class_iou(self) -> NDArray[np.float64]:
        """IoU of each class in percent, ``float64 [K]``; NaN where it never occurs."""
        return class_scores(self.confusion, ["mIoU"])["IoU"] * 100

    @property
    def miou(self) -> float:
        """Mean IoU in percent, over the classes that occur."""
        return float(np.nanmean(self.class_iou))


def evaluate_files(
    predict: Callable[[str], Any],
    data: Mapping[str, Any] | str | Path,
    *,
    class_ids: tuple[int, ...],
    classes: tuple[str, ...],
    split: str = "val",
    most: int | None = None,
) -> Evaluation:
    """Predict the images of a dataset one by one and count.

    Args:
        predict: Takes the path of an image; returns class ids `[H, W]` at its size, a tensor on
            the CPU or an array.
        data: What `load_data` reads.
        class_ids: Ids that predictions carry.
        classes: Their names, as the model has them.
        split: 'val', 'train' or 'test'.
        most: How many images at most, evenly spread; None for all.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the dataset has other classes than the model, or a file is unfit.
    """
    description = load_data(data, check_splits=[split])
    found = dict(zip(description.class_ids, description.classes, strict=True))
    wanted = dict(zip(class_ids, classes, strict=True))
    if found != wanted:
        differing = sorted({*found.items()} ^ {*wanted.items()})[:6]
        raise ValueError(
            f"{description.source} has other classes than the model; ids and names that only one "
            f"of them has: {differing}. Measure it on a dataset with the classes it was trained on."
        )
    pairs = [pair for folders in description.folders(split) for pair in find_pairs(folders)]
    check_headers(pairs)
    pairs = pairs if most is None else list(every_nth(pairs, most))
    table = description.label_table()
    # Id -> index of the dataset's classes, whose order the counts have.
    index_of = np.full(max(description.class_ids) + 1, -1, np.int64)
    index_of[list(description.class_ids)] = np.arange(len(description.class_ids))
    total = torch.zeros(len(found), len(found), dtype=torch.int64)
    console = Console(stderr=True)
    for pair in track(
        pairs, description="evaluate", console=console, disable=not console.is_terminal
    ):
        labels = table(read_mask(pair.mask), pair.mask)
        total += count_confusion(
            torch.from_numpy(index_of[np.asarray(predict(pair.image))]),
            torch.from_numpy(labels),
            num_classes=len(found),
            ignore_index=IGNORED,
            path=pair.image,
        )
    return Evaluation(tuple(description.classes), total.numpy(), len(pairs))


def print_evaluation(evaluation: Evaluation, *, title: str) -> None:
    """Print IoU by class, and mIoU."""
    table = Table("class", "IoU", title=title, title_justify="left")
    for name, value in zip(evaluation.classes, evaluation.class_iou, strict=True):
        table.add_row(name, "-" if np.isnan(value) else f"{value:.2f}")
    console = Console()
    console.print(table)
    console.print(f"mIoU {evaluation.miou:.2f} on {evaluation.images} images", highlight=False)
