"""Measuring whatever predicts image files against the masks of a dataset: the one mIoU loop.

Shape legend: K classes, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmseg_eomt.apis.inference import SegmentationModel
from mmseg_eomt.datasets.data_description import DataDescription, load_data
from mmseg_eomt.datasets.file_pairs import check_headers, every_nth, find_pairs
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.evaluation.confusion import class_scores, count_confusion
from mmseg_eomt.header import ModelHeader
from mmseg_eomt.images.reading import read_mask

if TYPE_CHECKING:
    from mmseg_eomt.deploy.runners import Runner
    from mmseg_eomt.deploy.verify import MiouPair


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


def described(data: Any, header: ModelHeader) -> DataDescription:
    """Read a dataset's description.

    Raises:
        ValueError: If it has other classes than the model, or no validation images.
    """
    description = load_data(data)
    if tuple(description.class_ids) != header.class_ids:
        raise ValueError(
            f"{description.source}: its classes {description.class_ids} are not those of the model "
            f"({list(header.class_ids)}), so mIoU means nothing. Give the data it was trained on, "
            "or pictures alone (--images)."
        )
    description.folders("val")
    return description


def miou_pair(
    runner: Runner,
    model: SegmentationModel,
    data: Any,
    *,
    max_drop: float,
    console: Console,
) -> MiouPair:
    """Measure both on all validation images of a dataset, at their original size.

    Args:
        runner: Of the exported model, which gives scores.
        model: The model it was made of.
        data: The dataset; its classes are those of the model.
        max_drop: By how much the exported model may be worse, in percent.
        console: Where progress is shown, if it is a terminal.

    Raises:
        ValueError: If the dataset is unfit, see `described`.
    """
    from mmseg_eomt.deploy.session import Session
    from mmseg_eomt.deploy.verify import MiouPair, evaluating

    header, description = model.header, described(data, model.header)
    table = description.label_table()
    pairs = [pair for folders in description.folders("val") for pair in find_pairs(folders)]
    classes = header.num_classes
    counts = torch.zeros(2, classes, classes, dtype=torch.int64)
    index_of = np.zeros(max(header.class_ids) + 1, np.int64)
    index_of[list(header.class_ids)] = range(classes)
    shown = track(pairs, "mIoU of both", console=console, disable=not console.is_terminal)
    session = Session(runner)
    with evaluating(model.segmentor):
        for pair in shown:
            truth = torch.from_numpy(table(read_mask(pair.mask), pair.mask))
            both = model.predict(pair.image).numpy(), session.predict(pair.image)
            for index, ids in enumerate(both):
                labels = torch.from_numpy(index_of[ids])
                counts[index] += count_confusion(
                    labels, truth, num_classes=classes, ignore_index=IGNORED, path=pair.image
                )
    reference, exported = (
        100 * float(np.nanmean(class_scores(count.numpy(), ("mIoU",))["IoU"])) for count in counts
    )
    return MiouPair(reference, exported, len(pairs), max_drop)
