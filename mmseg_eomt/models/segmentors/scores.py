"""Label maps and scores at the original size, in bounded memory.

Shape legend: K classes, h/w the resized image (canvas), H/W pixels of the result.

A result pixel is a weighted mean of four canvas pixels. Where all four have the same best class,
so has it, and its scores need not be computed: only pixels along the borders of regions are
resized. The label map is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_eomt.models.segmentors.canvas import Taps, View, canvas_rows, taps

CHUNK = 2**19
"""Scores of border pixels computed at a time (2 MiB, a few of them): stays in the cache."""
STRIP = 32
"""Canvas rows held at a time, if they fit: their scores stay in the cache."""


def label_map(views: Sequence[View], size: tuple[int, int], *, memory: int) -> Tensor:
    """The class of the highest score at each pixel.

    Args:
        views (Sequence[View]): Of one image; their scores are averaged.
        size (tuple[int, int]): (H, W) of the result.
        memory (int): Bytes that scores may take at a time; one row of the result is always made
            at once.

    Returns:
        Tensor: ``int32 [H, W]``, class indices.
    """
    labels = torch.empty(size, dtype=torch.int32, device=views[0].masks.device)
    for first, last in _strips(views, size, memory):
        parts = [_Part.of(view, size, first, last) for view in views]
        labels[first:last] = _labels_of(parts)
    return labels


def score_map(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """All scores ``float32 [K, H, W]``: sums over queries of mask times class probability."""
    total: Tensor | None = None
    for view in views:
        canvas = canvas_rows(view, 0, view.size[0]).permute(2, 0, 1)[None].contiguous()
        if view.size != size:
            canvas = F.interpolate(canvas, size, mode="bilinear", align_corners=False)
        total = canvas[0] if total is None else total.add_(canvas[0])
    assert total is not None, "at least one view"
    return total if len(views) == 1 else total.div_(len(views))


def label_map_of_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of the highest score at each pixel of a canvas brought to another size.

    As :func:`label_map`, for scores that are there already.

    Args:
        scores (Tensor): ``float32 [h, w, K]``, classes together in memory.
        size (tuple[int, int]): (H, W) of the result.

    Returns:
        Tensor: ``int32 [H, W]``, class indices.
    """
    height, width = scores.shape[:2]
    labels = torch.empty(size, dtype=torch.int32, device=scores.device)
    across = taps(width, size[1], 0, size[1], device=scores.device)
    rows = max(1, STRIP * size[0] // height)
    for first in range(0, size[0], rows):
        last = min(first + rows, size[0])
        down = taps(height, size[0], first, last, device=scores.device)
        top = int(down.lower[0])
        strip = scores[top : int(down.upper[-1]) + 1].flatten(0, 1)
        down = Taps(down.lower - top, down.upper - top, down.weight)
        labels[first:last] = _labels_of([_Part(strip, width, down, across)])
    return labels


def _strips(views: Sequence[View], size: tuple[int, int], memory: int) -> Iterator[tuple[int, int]]:
    """Row ranges of the result whose computation stays within ``memory`` bytes."""
    per_row, fixed, rows = 0.0, 4.0 * 8 * CHUNK, float(size[0])
    for view in views:
        _, classes, queries = view.classes.shape
        # Scores; a share of the mask rows: as they are, to the left, to the right, steps.
        canvas = 4.0 * (classes * view.size[1] + 4 * queries * view.window[1])
        fixed += 2 * canvas  # the rows that a resize reads beyond its own
        per_row += canvas * view.size[0] / size[0]
        if view.masks.device.type == "cpu":
            rows = min(rows, STRIP * size[0] / view.size[0])
    per_row += 64.0 * size[1]  # best classes and places of pixels on borders
    rows = max(1, min(int(rows), int((memory - fixed) // per_row)))
    for first in range(0, size[0], rows):
        yield first, min(first + rows, size[0])


@dataclass(frozen=True)
class _Part:
    """Canvas rows of a view and how rows of the result are read from them."""

    scores: Tensor  # [h * w, K], of some rows of the canvas
    width: int
    down: Taps
    across: Taps

    @classmethod
    def of(cls, view: View, size: tuple[int, int], first: int, last: int) -> _Part:
        """What rows ``first`` to ``last`` of a result of ``size`` read."""
        device = view.masks.device
        down = taps(view.size[0], size[0], first, last, device=device)
        top = int(down.lower[0])
        canvas = canvas_rows(view, top, int(down.upper[-1]) + 1)
        down = Taps(down.lower - top, down.upper - top, down.weight)
        across = taps(view.size[1], size[1], 0, size[1], device=device)
        return cls(canvas.flatten(0, 1), view.size[1], down, across)

    def clear_labels(self) -> Tensor:
        """The class that is best in all pixels read, else -1: ``int32 [rows, W]``."""
        best = self.scores.argmax(-1).int().view(-1, self.width)
        below = torch.cat((best[1:], best[-1:]))
        cells = torch.where(best == below, best, -1)
        beside = torch.cat((cells[:, 1:], cells[:, -1:]), dim=1)
        cells = torch.where(cells == beside, cells, -1)
        return cells.index_select(0, self.down.lower).index_select(1, self.across.lower)

    def scores_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Resized scores ``[pixels, K]`` at some pixels of the result."""
        left, right = self.across.lower[columns], self.across.upper[columns]
        weight = self.across.weight[columns, None]
        sides = []
        for line in (self.down.lower[rows], self.down.upper[rows]):
            line = line * self.width
            start = self.scores.index_select(0, line + left)
            step = self.scores.index_select(0, line + right).sub_(start)
            sides.append(start.addcmul_(step, weight))
        upper, lower = sides
        return upper.addcmul_(lower.sub_(upper), self.down.weight[rows, None])


def _labels_of(parts: Sequence[_Part]) -> Tensor:
    """Best classes ``int32 [rows, W]`` of the sum of all parts."""
    labels = parts[0].clear_labels()
    for part in parts[1:]:
        other = part.clear_labels()
        labels = torch.where(labels == other, labels, -1)
    rows, columns = (labels < 0).nonzero(as_tuple=True)
    count = max(1, CHUNK // parts[0].scores.shape[1])
    for first in range(0, len(rows), count):
        places = rows[first : first + count], columns[first : first + count]
        scores = parts[0].scores_at(*places)
        for part in parts[1:]:
            scores += part.scores_at(*places)
        labels[places] = scores.argmax(-1).int()
    return labels
