"""mIoU of an exported model and of the model it was made of, on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from mmseg_eomt.apis.inference import SegmentationModel
from mmseg_eomt.datasets.data_description import DataDescription, load_data
from mmseg_eomt.datasets.file_pairs import find_pairs
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.evaluation.confusion import class_scores, count_confusion
from mmseg_eomt.header import ModelHeader
from mmseg_eomt.images.reading import read_mask

if TYPE_CHECKING:
    from mmseg_eomt.deploy.runners import Runner
    from mmseg_eomt.deploy.verify import MiouPair


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
