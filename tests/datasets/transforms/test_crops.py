"""Scale jitter and crop: geometry, padding, redraws and equality with the plain form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.datasets.transforms import ScaleJitterCrop
from mmseg_eomt.images.resampling import resize_labels_region, resize_region

RNG = np.random.default_rng(0)


def sample(rows: int, cols: int) -> dict[str, Any]:
    return {
        "img": RNG.integers(1, 256, (rows, cols, 3), dtype=np.uint8),
        "gt_seg_map": RNG.integers(0, 5, (rows, cols), dtype=np.uint8),
        "seg_fields": ["gt_seg_map"],
    }


@pytest.mark.parametrize("shape", [(37, 53), (200, 90), (31, 31)])
@pytest.mark.parametrize("factor", [0.21, 0.5, 0.97, 1.0, 1.33, 3.7])
def test_region_equals_crop_of_the_whole_resized_image(
    shape: tuple[int, int], factor: float
) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = RNG.integers(0, 9, shape, dtype=np.uint8)
    size = (int(shape[0] * factor), int(shape[1] * factor))
    whole = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    whole_labels = resize_labels_region(labels, size, top=0, left=0, height=size[0], width=size[1])
    assert whole_labels.shape == size
    for _ in range(10):
        height, width = RNG.integers(1, size[0] + 1), RNG.integers(1, size[1] + 1)
        region = {
            "top": int(RNG.integers(0, size[0] - height + 1)),
            "left": int(RNG.integers(0, size[1] - width + 1)),
            "height": int(height),
            "width": int(width),
        }
        rows = slice(region["top"], region["top"] + region["height"])
        cols = slice(region["left"], region["left"] + region["width"])
        part = resize_region(image, size, **region).astype(int)
        difference = np.abs(part - np.asarray(whole)[rows, cols])
        assert difference.max() <= 2
        assert np.array_equal(
            resize_labels_region(labels, size, **region), whole_labels[rows, cols]
        )


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_channels_are_resized_independently(channels: int) -> None:
    image = RNG.integers(0, 256, (20, 30, channels), dtype=np.uint8)
    region = {"top": 2, "left": 3, "height": 9, "width": 11}
    together = resize_region(image, (15, 22), **region)
    apart = [resize_region(image[..., c : c + 1], (15, 22), **region) for c in range(channels)]
    assert together.shape == (9, 11, channels)
    assert np.array_equal(together, np.concatenate(apart, axis=2))


def test_labels_come_from_under_the_pixel_centres() -> None:
    labels = np.arange(8, dtype=np.uint8)[None].repeat(2, 0)
    half = resize_labels_region(labels, (1, 4), top=0, left=0, height=1, width=4)
    assert half.tolist() == [[1, 3, 5, 7]]
    double = resize_labels_region(labels, (2, 16), top=0, left=0, height=1, width=16)
    assert double[0].tolist() == np.repeat(np.arange(8), 2).tolist()


def test_scale_one_fits_the_image_inside_the_crop_with_padding_right_and_below() -> None:
    data = sample(20, 40)
    out = ScaleJitterCrop((32, 32), scale=(1.0, 1.0))(dict(data))
    expected = Image.fromarray(data["img"]).resize((32, 16), Image.Resampling.BILINEAR)
    assert out["img"].shape == (32, 32, 3)
    assert np.array_equal(out["img"][:16], np.asarray(expected))
    assert (out["img"][16:] == 0).all()
    assert (out["gt_seg_map"][16:] == 255).all()
    assert (out["gt_seg_map"][:16] != 255).all()
    assert out["img_shape"] == (32, 32) and out["scale_factor"] == (0.8, 0.8)


def test_scales_fill_their_range_and_keep_the_aspect() -> None:
    np.random.seed(0)
    factors = []
    crop = ScaleJitterCrop((30, 50))
    for _ in range(300):
        x, y = crop(sample(60, 80))["scale_factor"]
        assert abs(x - y) < 1 / 60 + 1 / 80  # only the rounding to whole pixels
        factors.append(y / min(30 / 60, 50 / 80))
    assert 0.45 < min(factors) < 0.53 and 1.95 < max(factors) <= 2.0
    assert abs(np.mean(factors) - 1.25) < 0.08


def test_crops_reach_every_corner() -> None:
    rows, cols = np.mgrid[:16, :16]
    data = {
        "img": np.zeros((16, 16, 3), np.uint8),
        "gt_seg_map": (rows * 16 + cols).astype(np.uint8),
    }
    np.random.seed(0)
    crop = ScaleJitterCrop((8, 8), scale=(2.0, 2.0))
    corners = {
        int(crop({**data, "seg_fields": ["gt_seg_map"]})["gt_seg_map"][0, 0]) for _ in range(2000)
    }
    assert corners == {row * 16 + col for row in range(9) for col in range(9)}


def test_crop_without_labels_is_redrawn() -> None:
    data = sample(64, 64)
    data["gt_seg_map"][:] = 255
    data["gt_seg_map"][60:, 60:] = 3
    np.random.seed(0)
    crop = ScaleJitterCrop((16, 16), scale=(2.0, 2.0), max_tries=500)
    for _ in range(20):
        assert (crop(dict(data))["gt_seg_map"] == 3).any()


def test_redraws_end_after_max_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample(64, 64)
    data["gt_seg_map"][:] = 255
    crop = ScaleJitterCrop((16, 16), max_tries=7)
    draws = []
    draw = crop._draw
    monkeypatch.setattr(crop, "_draw", lambda *shape: draws.append(shape) or draw(*shape))
    out = crop(data)
    assert len(draws) == 7
    assert out["img"].shape == (16, 16, 3) and (out["gt_seg_map"] == 255).all()


def test_image_and_labels_stay_aligned() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:70] = 255
    labels = (image[..., 0] == 255).astype(np.uint8)
    np.random.seed(0)
    for _ in range(20):
        out = ScaleJitterCrop((48, 48))(
            {"img": image, "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]}
        )
        inside = out["gt_seg_map"] != 255
        disagree = ((out["img"][..., 0] > 127) != (out["gt_seg_map"] == 1)) & inside
        assert disagree.mean() < 0.01  # ties at the edge


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        (
            {"size": (8, 8), "scale": (2.0, 0.5)},
            r"scale is \(2.0, 0.5\); allowed is 0 < low <= high",
        ),
        ({"size": 8, "max_tries": 0}, "max_tries is 0"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleJitterCrop(**options)
