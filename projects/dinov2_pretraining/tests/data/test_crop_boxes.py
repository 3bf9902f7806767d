"""Regions follow torchvision's rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from dinov2_pretraining.data.views.crop_boxes import central_box, draw_box, sufficient_pixels

RATIO = (3 / 4, 4 / 3)


@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
@pytest.mark.parametrize("size", [(360, 480), (500, 300)])
def test_regions_are_distributed_as_torchvisions(
    scale: tuple[float, float], size: tuple[int, int]
) -> None:
    np.random.seed(0)
    image = torch.empty(3, *size)
    ours = np.array([draw_box(size, scale=scale) for _ in range(1500)])
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(1500)]
    )
    tops, lefts, heights, widths = ours.T
    assert (tops + heights <= size[0]).all() and (lefts + widths <= size[1]).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_small_shares_and_ratios_are_uniform() -> None:
    np.random.seed(1)
    boxes = np.array([draw_box((1000, 1000), scale=(0.05, 0.32)) for _ in range(2000)])
    shares = boxes[:, 2] * boxes[:, 3] / 1e6
    ratios = np.log(boxes[:, 3] / boxes[:, 2])
    # Nothing is rejected in a square of which at most 0.32 is cut.
    assert kstest(shares, "uniform", args=(0.05, 0.27)).pvalue > 1e-3
    low, high = np.log(RATIO)
    assert kstest(ratios, "uniform", args=(low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (7, 7), (1, 1), (1, 3)])
def test_images_too_narrow_for_any_ratio_give_their_centre_as_in_torchvision(
    size: tuple[int, int],
) -> None:
    np.random.seed(0)
    # No draw of 100 times the area fits.
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), [100.0, 100.0], list(RATIO))
    assert draw_box(size, scale=(100.0, 100.0)) == tuple(expected)
    assert central_box(size) == tuple(expected)


def test_sufficient_pixels_leave_the_smallest_region_as_large_as_its_view() -> None:
    np.random.seed(0)
    pixels = sufficient_pixels(98, scale=0.05)
    side = int(np.ceil(np.sqrt(pixels)))
    sides = [min(draw_box((side, side), scale=(0.05, 0.05))[2:]) for _ in range(1000)]
    assert min(sides) in (97, 98)  # rounded
