"""Scores of one view, made of its windows, row by row.

Shape legend: n windows, Q queries, K classes, s mask resolution, h/w the resized image (canvas).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
