"""Label maps and scores at the original size, made of windows in bounded memory.

A result pixel is a weighted mean of four canvas pixels. Where all four have the same best class,
so has it, and its scores need not be computed: only pixels along the borders of regions are
resized. The label map is the same.

Shape legend: K classes, h/w the resized image (canvas), H/W pixels of the result, n windows, Q
queries, s mask resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class View:
    """The predictions of one image seen once: resized, maybe mirrored, cut in windows.

    Attributes:
        masks (Tensor): Mask logits ``[n, Q, s_h, s_w]``; they span ``padded``.
        classes (Tensor): Class probabilities ``[n, K, Q]``, "no object" left out.
        starts (tuple): ``(top, left)`` of each window on the canvas: all pairs of some rows and
            some columns.
        window (tuple[int, int]): Height and width of the windows.
        padded (tuple[int, int]): The same, up to the next multiple of the patch size.
        size (tuple[int, int]): Canvas (h, w).
        flip (str, optional): 'horizontal', 'vertical' or None: how the canvas was mirrored.
    """

    masks: Tensor
    classes: Tensor
    starts: tuple[tuple[int, int], ...]
    window: tuple[int, int]
    padded: tuple[int, int]
    size: tuple[int, int]
    flip: str | None = None


@dataclass(frozen=True)
class Taps:
    """Where a bilinear resize along one axis reads, for a range of its results.

    As ``F.interpolate(align_corners=False)``, in float32.

    Attributes:
        lower (Tensor): ``int64 [m]``, the source pixel at or before each result.
        upper (Tensor): ``int64 [m]``, the one after it; the same at the far border.
        weight (Tensor): ``float32 [m]``, share of ``upper``.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor


def taps(source: int, target: int, first: int, last: int, *, device: torch.device) -> Taps:
    """Taps of results ``first`` to ``last`` of a resize from ``source`` to ``target`` pixels."""
    scale = torch.tensor(source / target, dtype=torch.float32, device=device)
    position = torch.arange(first, last, dtype=torch.float32, device=device).add_(0.5)
    position = (scale * position - 0.5).clamp_(min=0)
    lower = position.floor().clamp_(max=source - 1)
    return Taps(lower.long(), (lower + 1).clamp_(max=source - 1).long(), position - lower)


def canvas_rows(view: View, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` of the averaged window scores, mirrored back.

    Args:
        view (View): What the network said.
        first (int): First row of the canvas.
        last (int): The row after the last.

    Returns:
        Tensor: ``float32 [last - first, w, K]``. Classes lie together, so that the best one and
        any pixel are read from one place in memory.
    """
    height, width = view.size
    if view.flip == "vertical":
        first, last = height - last, height - first
    classes = view.classes.shape[1]
    canvas = view.masks.new_zeros((last - first, width, classes), dtype=torch.float32)
    windows = torch.zeros(last - first, width, dtype=torch.int32)  # on each pixel
    for index, (top, left) in enumerate(view.starts):
        begin, end = max(first, top), min(last, top + view.window[0])
        if begin < end:
            place = (slice(begin - first, end - first), slice(left, left + view.window[1]))
            _add_window(canvas[place], view, index, begin - top)
            windows[place] += 1
    overlap = (windows > 1).nonzero()
    if len(overlap):
        # Only the box around what several windows cover needs the division.
        (top, left), (bottom, right) = overlap.amin(0).tolist(), (overlap.amax(0) + 1).tolist()
        canvas[top:bottom, left:right] /= windows[top:bottom, left:right, None].to(canvas.device)
    if view.flip == "vertical":
        return canvas.flip(0)
    return canvas.flip(1) if view.flip == "horizontal" else canvas


def _add_window(target: Tensor, view: View, index: int, first: int) -> None:
    """Adds the scores of a window's rows from ``first`` on to ``target [rows, width, K]``.

    Mask logits are brought to full resolution before the sigmoid, as in the published evaluation.
    """
    device, (rows, width) = target.device, target.shape[:2]
    down = taps(view.masks.shape[2], view.padded[0], first, first + rows, device=device)
    top, bottom = int(down.lower[0]), int(down.upper[-1])
    masks = view.masks[index, :, top : bottom + 1].permute(1, 2, 0).float()  # [., s_w, Q]
    if masks.shape[1] != view.padded[1]:
        across = taps(masks.shape[1], view.padded[1], 0, width, device=device)
        left, right = (masks.index_select(1, side) for side in (across.lower, across.upper))
        masks = left.addcmul_(right.sub_(left), across.weight[:, None])
    masks = masks[:, :width].contiguous()  # [., width, Q]
    steps = masks.diff(dim=0, append=masks[-1:])
    weights = view.classes[index].float().t().contiguous()  # [Q, K]
    # A row at a time stays in the cache of a CPU, and makes a row's numbers the same whatever
    # rows are asked for with it. A GPU wants large kernels instead.
    if device.type == "cpu":
        lines = zip((down.lower - top).tolist(), down.weight.tolist(), strict=True)
        for row, (lower, weight) in enumerate(lines):
            logits = torch.add(masks[lower], steps[lower], alpha=weight)
            target[row].addmm_(logits.sigmoid_(), weights)
    else:
        lower = down.lower - top
        logits = masks.index_select(0, lower)
        logits.addcmul_(steps.index_select(0, lower), down.weight[:, None, None])
        target += logits.sigmoid_() @ weights
