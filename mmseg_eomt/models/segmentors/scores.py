"""Scores per pixel and class from mask and class predictions, in bounded memory.

Shape legend: n windows, Q queries, K classes, s mask resolution, h/w the resized image (canvas),
H/W pixels of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """The predictions of one image seen once: resized, maybe mirrored, cut in windows.

    Attributes:
        masks (Tensor): Mask logits ``[n, Q, s_h, s_w]``; they span ``padded``.
        classes (Tensor): Class probabilities ``[n, K, Q]``, "no object" left out.
        starts (tuple): ``(top, left)`` of each window on the canvas.
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


def label_map(views: Sequence[View], size: tuple[int, int], *, memory: int) -> Tensor:
    """The class of the highest score at each pixel.

    Args:
        views (Sequence[View]): Of one image; their scores are averaged.
        size (tuple[int, int]): (H, W) of the result.
        memory (int): Bytes that scores may take at a time.

    Returns:
        Tensor: ``int32 [H, W]``, class indices.
    """
    device = views[0].masks.device
    labels = torch.empty(size, dtype=torch.int32, device=device)
    for first, last in _strips(views, size, memory):
        labels[first:last] = _score_rows(views, size, first, last).argmax(0)
    return labels


def score_map(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """All scores ``float32 [K, H, W]``: sums over queries of mask times class probability."""
    return _score_rows(views, size, 0, size[0])


def _strips(views: Sequence[View], size: tuple[int, int], memory: int) -> Iterator[tuple[int, int]]:
    """Row ranges of the result whose computation stays within ``memory`` bytes."""
    per_row = 0.0
    fixed = 0.0
    for view in views:
        _, classes, queries = view.classes.shape
        # Canvas rows: logits interpolated in rows, then in columns, sigmoid, product, sum.
        canvas = 4.0 * (4 * queries * view.window[1] + 3 * classes * view.size[1])
        fixed = max(fixed, 2 * canvas)
        result = 4.0 * classes * (2 * view.size[1] + 3 * size[1])
        per_row = max(per_row, result + canvas * view.size[0] / size[0])
    rows = max(1, min(size[0], int((memory - fixed) // per_row)))
    for first in range(0, size[0], rows):
        yield first, min(first + rows, size[0])


def _score_rows(views: Sequence[View], size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` of the averaged scores at ``size``: ``[K, last - first, W]``."""
    total: Tensor | None = None
    for view in views:
        upper, lower, weight = _rows_of_resize(view.size[0], size[0], first, last)
        top = upper[0]
        canvas = _canvas_rows(view, top, lower[-1] + 1)
        rows = _interpolate_rows(
            canvas, [row - top for row in upper], [row - top for row in lower], weight
        )
        scores = _interpolate_columns(rows, size[1])
        total = scores if total is None else total.add_(scores)
    assert total is not None, "at least one view"
    return total if len(views) == 1 else total.div_(len(views))


def _canvas_rows(view: View, first: int, last: int) -> Tensor:
    """Rows of the averaged window scores on the canvas, mirrored back: ``[K, rows, w]``."""
    height, width = view.size
    if view.flip == "vertical":
        first, last = height - last, height - first
    canvas = view.masks.new_zeros((view.classes.shape[1], last - first, width), dtype=torch.float32)
    for index, (top, left) in enumerate(view.starts):
        begin, end = max(first, top), min(last, top + view.window[0])
        if begin >= end:
            continue
        scores = _window_rows(view, index, begin - top, end - top)
        canvas[:, begin - first : end - first, left : left + view.window[1]] += scores
    if len(view.starts) > 1:
        canvas /= _coverage(view, first, last, canvas.device)
    if view.flip == "vertical":
        return canvas.flip(1)
    return canvas.flip(2) if view.flip == "horizontal" else canvas


def _window_rows(view: View, index: int, first: int, last: int) -> Tensor:
    """Scores of rows ``first`` to ``last`` of one window: ``[K, rows, window width]``.

    Mask logits are brought to full resolution before the sigmoid, as in the published evaluation.
    """
    masks = view.masks[index].float()  # [Q, s_h, s_w]
    upper, lower, weight = _rows_of_resize(masks.shape[1], view.padded[0], first, last)
    logits = _interpolate_rows(masks, upper, lower, weight)
    logits = _interpolate_columns(logits, view.padded[1])[..., : view.window[1]]
    scores = view.classes[index].float() @ logits.sigmoid().flatten(1)
    return scores.view(-1, last - first, view.window[1])


def _coverage(view: View, first: int, last: int, device: torch.device) -> Tensor:
    """How many windows lie on each pixel of canvas rows ``first`` to ``last``: ``[rows, w]``."""
    count = torch.zeros(view.size, dtype=torch.float32)
    for top, left in view.starts:
        count[top : top + view.window[0], left : left + view.window[1]] += 1
    return count[first:last].to(device)


def _rows_of_resize(
    source: int, target: int, first: int, last: int
) -> tuple[list[int], list[int], Tensor]:
    """Source rows and weights of rows ``first`` to ``last`` of a bilinear resize.

    As ``F.interpolate(align_corners=False)``, in float32.

    Returns:
        tuple: Upper rows, lower rows, and the weight ``[rows]`` of the lower ones.
    """
    scale = torch.tensor(source / target, dtype=torch.float32)
    position = (scale * (torch.arange(first, last) + 0.5) - 0.5).clamp_(min=0)
    upper = position.floor().clamp_(max=source - 1)
    lower = (upper + 1).clamp_(max=source - 1)
    return upper.long().tolist(), lower.long().tolist(), position - upper


def _interpolate_rows(image: Tensor, upper: list[int], lower: list[int], weight: Tensor) -> Tensor:
    """Mixes rows of ``image [K, h, w]`` to ``[K, rows, w]``."""
    if not weight.any() and upper == list(range(upper[0], upper[0] + len(upper))):
        return image[:, upper[0] : upper[0] + len(upper)]
    index = torch.tensor([upper, lower], device=image.device)
    above, below = image.index_select(1, index[0]), image.index_select(1, index[1])
    return torch.lerp(above, below, weight.to(image.device)[:, None])


def _interpolate_columns(image: Tensor, width: int) -> Tensor:
    """Resizes the width of ``image [K, rows, w]`` bilinearly."""
    if image.shape[2] == width:
        return image
    size = (image.shape[1], width)
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
