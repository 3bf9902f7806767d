"""Principal components of patch features as colours.

Shape legend: I images, N = h * w patches, R rows, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLORS = 3
_CUT = 0.01  # this share of the values at either end gets the strongest colour


def principal_axes(rows: Tensor, *, count: int = _COLORS) -> Tensor:
    """The directions in which rows vary most.

    A direction has two signs; here its largest entry is positive.

    Args:
        rows (Tensor): ``[R, C]``.
        count (int): How many, at most C. Defaults to 3.

    Returns:
        Tensor: ``[count, C]``, of length 1, the strongest first, float64.
    """
    centred = rows.double() - rows.double().mean(dim=0)
    axes: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:count]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    signed: Tensor = axes * largest.sign()
    return signed


def component_colors(rows: Tensor) -> Tensor:
    """The first three components of rows ``[R, C]`` as red, green and blue ``[R, 3]``, 0 to 1.

    Each is stretched over the range of its values, their outermost hundredths left out.
    """
    values = (rows.double() - rows.double().mean(dim=0)) @ principal_axes(rows).T
    ends = torch.quantile(values, torch.tensor([_CUT, 1 - _CUT], dtype=values.dtype), dim=0)
    width = (ends[1] - ends[0]).clamp(min=torch.finfo(values.dtype).tiny)
    return ((values - ends[0]) / width).clamp(0, 1)


def foreground(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches on one side of the first component.

    Of its two sides the foreground is the one that patches at the border of the images have less
    of: what stands in a picture rarely fills its border.

    Source: arXiv 2304.07193, "PCA of patch features" (threshold at 0 of the first component of the
    patches of several images; the rule for the sign is ours).

    Args:
        patches (Tensor): ``[I, N, C]``.
        grid (tuple[int, int]): ``(h, w)``.

    Returns:
        Tensor: Bool ``[I, N]``.
    """
    rows = patches.flatten(0, 1).double()
    first = (rows - rows.mean(dim=0)) @ principal_axes(rows, count=1)[0]
    first = first.view(len(patches), *grid)
    border = torch.ones(grid, dtype=torch.bool, device=patches.device)
    border[1:-1, 1:-1] = False
    if first[:, border].mean() > 0:
        first = -first
    return (first > 0).flatten(1)


def patch_colors(patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Colours of all patches, and those of the foreground by components of its own.

    Args:
        patches (Tensor): ``[I, N, C]`` with C of 3 and more.
        grid (tuple[int, int]): ``(h, w)``.

    Returns:
        tuple[Tensor, Tensor]: ``[I, h, w, 3]`` each, 0 to 1; black where there is no foreground.
    """
    count, shape = len(patches), (len(patches), *grid, _COLORS)
    whole = component_colors(patches.flatten(0, 1)).view(shape)
    chosen = foreground(patches, grid)
    front = torch.zeros(count, chosen.shape[1], _COLORS, dtype=whole.dtype, device=whole.device)
    if int(chosen.sum()) > _COLORS:
        front[chosen] = component_colors(patches[chosen])
    return whole, front.view(shape)
