"""Files about an evaluation: scores of classes and of images, and which classes are confused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather, all_reduce
from numpy.typing import NDArray
from torch import Tensor

from mmseg_eomt.evaluation.metrics.confusion import IOU_METRICS, class_scores
from mmseg_eomt.evaluation.metrics.confusion_picture import draw_confusion
from mmseg_eomt.safe_write import write_text

IMAGE_COLUMNS = ("image", "mIoU", "aAcc", "labelled_pixels", "worst_class", "worst_class_IoU")


def image_row(counts: Tensor, path: str, classes: Sequence[str]) -> list[Any]:
    """Scores of one image, in percent, by ``IMAGE_COLUMNS``.

    Its mIoU is the mean over the classes in its labels or its prediction; without a labelled pixel
    the scores are empty.

    Args:
        counts: ``int64 [K, K]``, rows are true classes.
        path: The image.
        classes: Names.
    """
    table = counts.cpu().numpy()
    pixels = int(table.sum())
    if not pixels:
        return [path, "", "", 0, "", ""]
    scores = class_scores(table, ["mIoU"])
    iou = scores["IoU"] * 100
    worst = int(np.nanargmin(iou))
    mean, accuracy = float(np.nanmean(iou)), float(scores["aAcc"]) * 100
    return [path, mean, accuracy, pixels, classes[worst], float(iou[worst])]


def gather_rows(rows: Sequence[Sequence[Any]], *, device: torch.device) -> list[list[Any]]:
    """Rows of all processes, as bytes of JSON; nothing is unpickled.

    Args:
        rows: Of this process: strings and numbers.
        device: That the processes exchange tensors on.
    """
    text = json.dumps(rows).encode()
    longest = torch.tensor(len(text), device=device)
    all_reduce(longest, op="max")
    # JSON may end in blanks.
    padded = np.frombuffer(text.ljust(int(longest)), dtype=np.uint8).copy()
    parts = all_gather(torch.from_numpy(padded).to(device))
    return [row for part in parts for row in json.loads(part.cpu().numpy().tobytes())]


def write_report(
    folder: Path,
    confusion: NDArray[np.int64],
    images: Sequence[Sequence[Any]],
    *,
    classes: Sequence[str],
    more: Mapping[str, NDArray[np.float64]],
) -> None:
    """Write ``classes.csv``, ``confusion.csv``, ``confusion.png`` and ``images.csv``, worst first.

    Args:
        folder: Is made.
        confusion: ``int64 [K, K]`` pixels, rows are true classes.
        images: Of ``image_row``.
        classes: K names.
        more: More scores of the classes, 0 to 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = class_scores(confusion, IOU_METRICS)
    scores.pop("aAcc")
    scores.update(more)
    table = [
        [name, int(confusion[k].sum()), *(_percent(values[k]) for values in scores.values())]
        for k, name in enumerate(classes)
    ]
    _write(folder / "classes.csv", ["class", "labelled_pixels", *scores], table)
    _write(
        folder / "confusion.csv",
        ["true \\ predicted", *classes],
        [[name, *confusion[k].tolist()] for k, name in enumerate(classes)],
    )
    worst_first = sorted(images, key=lambda row: (row[1] == "", row[1], row[0]))
    _write(folder / "images.csv", IMAGE_COLUMNS, worst_first)
    draw_confusion(folder / "confusion.png", confusion, classes)


def _percent(value: float) -> Any:
    return "" if np.isnan(value) else float(value) * 100


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, text.getvalue())
