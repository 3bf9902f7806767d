"""A confusion matrix as a picture, readable for a few classes as for hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmseg_eomt.safe_write import replaced

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
