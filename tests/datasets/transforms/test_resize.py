"""The validation rule."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.datasets.transforms import ResizeShortSide

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((360, 480), 512, (512, 683)),
        ((480, 360), 512, (683, 512)),
        ((512, 512), 512, (512, 512)),
        # 67 * 512 / 200 = 171.52 is rounded, not cut off (facts of the official code).
        ((200, 67), (512, 100), (512, 172)),
        ((3, 5), 2, (2, 3)),
        ((100, 300), (64, 256), (85, 256)),
    ],
)
def test_short_side_covers_the_window(
    shape: tuple[int, int], size: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = np.zeros(shape, np.uint8)
    out = ResizeShortSide(size)({"img": image, "gt_seg_map": labels, "ori_shape": shape})
    reference = Image.fromarray(image).resize(expected[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(out["img"], np.asarray(reference))
    assert out["img_shape"] == expected
    assert out["ori_shape"] == shape
    assert out["gt_seg_map"] is labels


def test_wrong_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        ResizeShortSide(0)
