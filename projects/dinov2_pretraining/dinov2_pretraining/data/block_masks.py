"""Masks of rectangular blocks (BEiT's, as in iBOT and DINOv2) with an exact number of patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_SMALLEST = 4  # patches of a block
_TRIES = 10


def block_mask(
    grid: tuple[int, int],
    count: int,
    *,
    random: np.random.RandomState,
    min_aspect: float = 0.3,
    max_aspect: float | None = None,
) -> Mask:
    """Masks exactly ``count`` patches.

    Blocks of 4 patches up to all that are still missing, with a log-uniform height / width, are
    laid anywhere, one over the other, as long as none brings too many patches. When ten in a
    row did not fit (there are few patches left then), single patches complete the mask, so that
    the number is exact; Meta's code leaves them out.

    Source: facebookresearch/dinov2 @05c66df, data/masking.py (rule and numbers).

    Args:
        grid (tuple[int, int]): Patches (down, across).
        count (int): Patches to mask, 0 to all.
        random (RandomState): Where random numbers come from.
        min_aspect (float): Smallest height / width of a block. Defaults to 0.3.
        max_aspect (float, optional): Largest. Defaults to None: ``1 / min_aspect``.

    Returns:
        ndarray: ``bool [h, w]``, True where masked.

    Raises:
        ValueError: If ``count`` or an aspect is out of its range.
    """
    height, width = grid
    if not 0 <= count <= height * width:
        raise ValueError(f"count is {count}; a grid of {height}x{width} has {height * width}.")
    max_aspect = 1 / min_aspect if max_aspect is None else max_aspect
    if not 0 < min_aspect <= max_aspect:
        raise ValueError(
            f"min_aspect is {min_aspect}, max_aspect {max_aspect}; allowed is "
            "0 < min_aspect <= max_aspect."
        )
    aspects = (math.log(min_aspect), math.log(max_aspect))
    mask: Mask = np.zeros(grid, dtype=np.bool_)
    missing = count
    while missing > 0:
        added = _add_block(mask, missing, aspects=aspects, random=random)
        if not added:
            free = np.flatnonzero(~mask)
            mask.flat[random.choice(free, missing, replace=False)] = True
            break
        missing -= added
    return mask


def _add_block(
    mask: Mask, most: int, *, aspects: tuple[float, float], random: np.random.RandomState
) -> int:
    """Lays one block that masks 1 to ``most`` patches more; returns how many, 0 if none fits."""
    height, width = mask.shape
    for _ in range(_TRIES):
        area = random.uniform(_SMALLEST, most)
        aspect = math.exp(random.uniform(*aspects))
        rows, cols = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < rows < height and 0 < cols < width):
            continue
        top, left = random.randint(height - rows + 1), random.randint(width - cols + 1)
        block = mask[top : top + rows, left : left + cols]
        added = rows * cols - int(block.sum())
        if 0 < added <= most:
            block[...] = True
            return added
    return 0


def masks_of_batch(
    views: int,
    grid: tuple[int, int],
    *,
    random: np.random.RandomState,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    **aspects: Any,
) -> Mask:
    """Masks of a batch of views: a fixed share of them is masked, each to another degree.

    Of M masked views number i masks a share of the patches that is uniform between the points
    i and i + 1 of M + 1 points from ``ratio[0]`` to ``ratio[1]``. So every batch holds the whole
    range, and nearly equally many masked patches. Which view is masked how much is random.

    Source: facebookresearch/dinov2 @05c66df, data/collate.py.

    Args:
        views (int): Views of the batch.
        grid (tuple[int, int]): Patches of a view (down, across).
        random (RandomState): Where random numbers come from.
        probability (float): Share of the views that is masked, rounded down. Defaults to 0.5.
        ratio (tuple[float, float]): Smallest and largest share of masked patches; at least one
            patch is masked. Defaults to (0.1, 0.5).
        aspects: ``min_aspect`` and ``max_aspect`` of `block_mask`.

    Returns:
        ndarray: ``bool [views, h * w]``, row-major, True where masked.
    """
    patches = grid[0] * grid[1]
    masked = int(views * probability)
    bounds = np.linspace(*ratio, masked + 1)
    masks: Mask = np.zeros((views, patches), dtype=np.bool_)
    for low, high, view in zip(bounds, bounds[1:], random.permutation(views), strict=False):
        count = max(1, int(patches * random.uniform(low, high)))
        masks[view] = block_mask(grid, count, random=random, **aspects).reshape(-1)
    return masks
