"""Files about an evaluation: scores of classes and images, and which classes are confused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from mmengine.dist import all_gather, all_reduce
from numpy.typing import NDArray
from torch import Tensor

from mmseg_eomt.evaluation.confusion import IOU_METRICS, class_scores
from mmseg_eomt.safe_write import replaced, write_text

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


# Up to so many classes, each cell shows its number.
NUMBERED = 40
SMALLEST_SHOWN = 0.5  # percent


def draw_confusion(path: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw which share of each true class (row) was predicted as which class (column).

    Args:
        path: PNG.
        confusion: ``int64 [K, K]`` pixels.
        classes: K names.
    """
    count = len(classes)
    labelled = confusion.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        share = np.where(labelled > 0, 100 * confusion / labelled, np.nan)
    cell = 0.55 if count <= NUMBERED else 0.16  # inches
    size = max(4.0, cell * count)
    font = 9 if count <= NUMBERED else 7
    margin = 0.6 + 0.09 * font / 9 * max(len(name) for name in classes)
    # Room for names on the left and above, for the scale on the right, for a line below.
    width, height = margin + size + 1.1, margin + size + 0.5
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / width, 0.4 / height, size / width, size / height))
    # By the square root, so that a few percent are seen.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    axes.set_facecolor("0.9")  # classes without a labelled pixel
    axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=2)
    axes.set_xlabel(
        "share of the pixels of a true class (row) by predicted class (column), in percent",
        fontsize=9,
    )
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if count <= NUMBERED:
        for row, column in np.argwhere(share >= SMALLEST_SHOWN):
            value = share[row, column]
            color = "white" if value > 40 else "black"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color
            )
    scale = figure.add_axes(
        ((margin + size + 0.2) / width, 0.4 / height, 0.18 / width, min(size, 6.0) / height)
    )
    figure.colorbar(image, cax=scale, ticks=[0, 1, 5, 10, 25, 50, 100])
    with replaced(path) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]
