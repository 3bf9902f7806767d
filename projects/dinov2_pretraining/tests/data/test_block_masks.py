"""Masks have exact counts, blocks of the stated shapes, and the stated spread over a batch."""

from __future__ import annotations

import numpy as np
import pytest

from dinov2_pretraining.data.block_masks import _add_block, block_mask, masks_of_batch


def generator(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


@pytest.mark.parametrize("grid", [(16, 16), (4, 4), (2, 3), (1, 1), (5, 20)])
def test_every_count_is_met_exactly(grid: tuple[int, int]) -> None:
    random = generator()
    for count in range(grid[0] * grid[1] + 1):
        mask = block_mask(grid, count, random=random)
        assert mask.shape == grid and mask.dtype == np.bool_ and mask.sum() == count


def test_a_block_is_a_rectangle_of_allowed_shape_and_area() -> None:
    random = generator()
    aspects, areas = [], []
    for _ in range(1000):
        mask = np.zeros((40, 40), np.bool_)
        added = _add_block(mask, 100, aspects=(np.log(0.3), np.log(1 / 0.3)), random=random)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(cols) + 1
        assert added == height * width == mask.sum() <= 100
        aspects.append(height / width)
        areas.append(added)
    # Sides are rounded to patches, so small blocks may be a little flatter.
    large = np.array(areas) > 40
    assert np.array(aspects)[large].min() > 0.25 and np.array(aspects)[large].max() < 4
    assert abs(np.mean(np.log(aspects))) < 0.1
    assert abs(np.mean(areas) - 52) < 5  # uniform from 4 to 100


def test_masks_are_blocks_and_not_noise() -> None:
    random = generator()
    same = []
    for _ in range(200):
        mask = block_mask((16, 16), 77, random=random)  # 30 %
        same.append((mask[:, 1:] & mask[:, :-1]).sum() / mask[:, 1:].sum())
    # Of masked patches, how often the left neighbour is masked: 0.3 by chance.
    assert np.mean(same) > 0.7


def test_no_side_is_preferred() -> None:
    random = generator()
    mean = np.mean([block_mask((8, 8), 20, random=random) for _ in range(2000)], axis=0)
    assert abs(mean.mean() - 20 / 64) < 1e-9
    assert mean.min() > 0.05  # blocks reach corners less often than the centre
    for other in (mean[::-1], mean[:, ::-1], mean.T):
        assert np.abs(mean - other).max() < 0.06


def test_half_of_the_views_are_masked_by_shares_spread_evenly() -> None:
    counts = []
    for seed in range(300):
        masks = masks_of_batch(16, (16, 16), random=generator(seed))
        assert masks.shape == (16, 256)
        found = masks.sum(axis=1)
        assert (found > 0).sum() == 8
        shares = np.sort(found[found > 0]) / 256
        bounds = np.linspace(0.1, 0.5, 9)
        assert (shares >= bounds[:-1] - 1 / 256).all() and (shares <= bounds[1:]).all()
        counts.append(found)
    totals = np.array(counts)
    # A batch masks 8 * 0.3 of the patches, with little spread; every view is masked equally often.
    assert abs(totals.sum(axis=1).mean() / (8 * 256) - 0.3) < 0.005
    assert totals.sum(axis=1).std() / (8 * 256) < 0.01
    assert np.abs((totals > 0).mean(axis=0) - 0.5).max() < 0.12


def test_the_number_of_masked_patches_is_that_of_metas_bound_at_most() -> None:
    bound = sum(int(256 * high) for high in np.linspace(0.1, 0.5, 9)[1:])
    sums = [masks_of_batch(16, (16, 16), random=generator(seed)).sum() for seed in range(100)]
    assert max(sums) <= bound


@pytest.mark.parametrize("views, masked", [(2, 1), (3, 1), (1, 0), (6, 3)])
def test_small_batches(views: int, masked: int) -> None:
    masks = masks_of_batch(views, (2, 2), random=generator())
    counts = masks.sum(axis=1)
    assert (counts > 0).sum() == masked and set(counts) <= {0, 1, 2}


def test_equal_generators_give_equal_masks() -> None:
    first, again, other = (masks_of_batch(8, (7, 7), random=generator(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="count is 5; a grid of 2x2 has 4"):
        block_mask((2, 2), 5, random=generator())
    with pytest.raises(ValueError, match="min_aspect is 2"):
        block_mask((2, 2), 1, random=generator(), min_aspect=2, max_aspect=1)
