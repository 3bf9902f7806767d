"""Resizing is Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinov2_pretraining.data.views.crop_boxes import Box
from dinov2_pretraining.data.views.view_resize import resize_box

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize("box", [Box(3, 5, 61, 80), Box(0, 0, 90, 120), Box(40, 50, 9, 7)])
@pytest.mark.parametrize("size", [(28, 28), (56, 42)])
def test_a_region_is_resized_as_by_pillow(box: Box, size: tuple[int, int]) -> None:
    right, bottom = box.left + box.width, box.top + box.height
    picture = Image.fromarray(NOISE).crop((box.left, box.top, right, bottom))
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    resized = resize_box(NOISE, box, size)
    assert resized.shape == (*size, 3) and resized.flags.c_contiguous
    difference = np.abs(resized - expected)
    assert difference.max() <= 1 and difference.mean() < 0.05
