"""From scores of windows to the label map of an image, in NumPy and in bounded memory.

The arithmetic of `models.window_scores`, for programs without PyTorch: scores are averaged where
windows overlap and brought to the size of the image by a bilinear resize.

Shape legend: K classes, h/w the resized image (canvas), H/W pixels of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.intp]

MEMORY = 2**26
"""Bytes of scores held at a time beside those of the windows; one row of the result at least."""
CHUNK = 2**20
"""Scores of border pixels computed at a time."""


@dataclass(frozen=True)
class WindowScores:
    """What a model said about the windows of one image.

    Attributes:
        scores (list[ndarray]): ``float32 [K, height, width]`` of each window.
        starts (list[tuple[int, int]]): Their ``(top, left)`` on the canvas.
        size (tuple[int, int]): Canvas (h, w).
    """

    scores: list[Floats]
    starts: list[tuple[int, int]]
    size: tuple[int, int]

    def rows(self, first: int, last: int) -> Floats:
        """Averaged scores ``[last - first, w, K]`` of some rows of the canvas."""
        classes, height, width = self.scores[0].shape
        canvas = np.zeros((last - first, self.size[1], classes), np.float32)
        windows = np.zeros(canvas.shape[:2], np.float32)
        for (top, left), scores in zip(self.starts, self.scores, strict=True):
            begin, end = max(first, top), min(last, top + height)
            if begin < end:
                place = (slice(begin - first, end - first), slice(left, left + width))
                canvas[place] += scores[:, begin - top : end - top].transpose(1, 2, 0)
                windows[place] += 1
        if windows.max() > 1:
            canvas /= windows[..., None]
        return canvas


@dataclass(frozen=True)
class Taps:
    """Where a bilinear resize along one axis reads: pixels at and after each result.

    As PyTorch's ``interpolate(align_corners=False)``, in float32.
    """

    lower: Places
    upper: Places
    weight: Floats  # share of `upper`


def taps(source: int, target: int, first: int, last: int) -> Taps:
    """Taps of results ``first`` to ``last`` of a resize from ``source`` to ``target`` pixels."""
    scale = np.float32(source / target)
    position = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    position = np.maximum(scale * position - np.float32(0.5), np.float32(0))
    lower = np.minimum(np.floor(position), np.float32(source - 1))
    after = np.minimum(lower + 1, source - 1)
    return Taps(lower.astype(np.intp), after.astype(np.intp), position - lower)


def label_map(windows: WindowScores, size: tuple[int, int]) -> NDArray[np.int32]:
    """The class of the highest score at each pixel.

    Where all four pixels that a result reads have the same best class, so has it: only pixels
    along borders are resized.

    Args:
        windows (WindowScores): Of one image.
        size (tuple[int, int]): (H, W) of the result.

    Returns:
        ndarray: ``int32 [H, W]``, class indices.
    """
    labels = np.empty(size, np.int32)
    across = taps(windows.size[1], size[1], 0, size[1])
    for first, last in _strips(windows, size):
        down, canvas = _read(windows, size, first, last)
        best = canvas.argmax(-1).astype(np.int32)
        if windows.size == size:
            labels[first:last] = best[: last - first]  # a resize reads a row more
            continue
        part = labels[first:last]
        part[...] = _clear(best)[down.lower][:, across.lower]
        rows, columns = np.nonzero(part < 0)
        step = max(1, CHUNK // canvas.shape[2])
        for start in range(0, len(rows), step):
            y, x = rows[start : start + step], columns[start : start + step]
            part[y, x] = _at(canvas, down, across, y, x).argmax(-1)
    return labels


def score_map(windows: WindowScores, size: tuple[int, int]) -> Floats:
    """All scores ``float32 [K, H, W]``."""
    result = np.empty((windows.scores[0].shape[0], *size), np.float32)
    across = taps(windows.size[1], size[1], 0, size[1])
    for first, last in _strips(windows, size):
        down, canvas = _read(windows, size, first, last)
        weight = across.weight[:, None]
        wide = canvas[:, across.lower]
        wide += (canvas[:, across.upper] - wide) * weight
        rows = wide[down.lower]
        rows += (wide[down.upper] - rows) * down.weight[:, None, None]
        result[:, first:last] = rows.transpose(2, 0, 1)
    return result


def _strips(windows: WindowScores, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Row ranges of the result whose canvas rows fit into `MEMORY`."""
    row = 4 * windows.scores[0].shape[0] * windows.size[1]
    canvas_rows = max(1, MEMORY // row - 2)
    rows = max(1, int(canvas_rows * size[0] / windows.size[0]))
    for first in range(0, size[0], rows):
        yield first, min(first + rows, size[0])


def _read(
    windows: WindowScores, size: tuple[int, int], first: int, last: int
) -> tuple[Taps, Floats]:
    """Canvas rows that rows ``first`` to ``last`` of a result read, and how."""
    down = taps(windows.size[0], size[0], first, last)
    top = int(down.lower[0])
    canvas = windows.rows(top, int(down.upper[-1]) + 1)
    return Taps(down.lower - top, down.upper - top, down.weight), canvas


def _clear(best: NDArray[np.int32]) -> NDArray[np.int32]:
    """The class that a pixel shares with those below and beside it, else -1."""
    below = np.concatenate((best[1:], best[-1:]))
    cells = np.where(best == below, best, -1)
    beside = np.concatenate((cells[:, 1:], cells[:, -1:]), axis=1)
    return np.where(cells == beside, cells, -1)


def _at(canvas: Floats, down: Taps, across: Taps, rows: Places, columns: Places) -> Floats:
    """Resized scores ``[pixels, K]`` at some pixels of the result."""
    left, right = across.lower[columns], across.upper[columns]
    weight = across.weight[columns, None]
    sides = []
    for line in (down.lower[rows], down.upper[rows]):
        start = canvas[line, left]
        sides.append(start + (canvas[line, right] - start) * weight)
    upper, lower = sides
    result: Floats = upper + (lower - upper) * down.weight[rows, None]
    return result
