"""Rotations against Pillow, and nothing from outside that is a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.datasets.transforms import RandomQuarterTurn, RandomRotation
from mmseg_eomt.datasets.transforms.rotation import rotate_image, rotate_labels

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("angle", [-77.0, -10.0, 3.3, 45.0, 170.0])
@pytest.mark.parametrize("shape", [(60, 80), (61, 45)])
def test_labels_are_turned_as_pillow_turns_them(angle: float, shape: tuple[int, int]) -> None:
    cells = RNG.integers(0, 200, (7, 9), dtype=np.uint8)
    labels = np.kron(cells, np.ones((12, 12), np.uint8))[: shape[0], : shape[1]]
    turned = rotate_labels(labels, angle)
    theirs = np.asarray(Image.fromarray(labels).rotate(angle, fillcolor=255))
    assert (turned == theirs).mean() > 0.995
    assert abs(int((turned == 255).sum()) - int((theirs == 255).sum())) <= 0.01 * labels.size
    assert turned.dtype == labels.dtype and (turned == 255).any()


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_image_and_labels_turn_alike(channels: int) -> None:
    labels = np.kron(RNG.integers(0, 9, (5, 7), dtype=np.uint8), np.ones((16, 16), np.uint8))
    image = np.repeat(labels[..., None] * 20, channels, axis=2)
    for angle in (-33.0, 12.5, 90.0):
        turned, moved = rotate_labels(labels, angle), rotate_image(image, angle)
        assert moved.shape == image.shape and moved.dtype == np.uint8
        inside = turned != 255
        assert (moved[..., -1][inside] == turned[inside] * 20).mean() > 0.8  # edges are mixed
        assert (moved[~inside] <= 160).all()
        assert np.array_equal(moved[..., 0], moved[..., -1])


def test_a_full_turn_changes_nothing() -> None:
    labels = RNG.integers(0, 9, (33, 46), dtype=np.uint8)
    assert np.array_equal(rotate_labels(labels, 360.0), labels)
    assert np.array_equal(rotate_labels(labels, 180.0), labels[::-1, ::-1])
    square = RNG.integers(0, 9, (33, 33), dtype=np.int64)
    assert np.array_equal(rotate_labels(square, 90.0), np.rot90(square))


def test_step_turns_all_maps_within_its_range_and_as_often_as_told() -> None:
    np.random.seed(0)
    labels = np.zeros((40, 60), np.uint8)
    step = RandomRotation(max_angle=20, prob=0.5)
    turned = 0
    for _ in range(200):
        results: dict[str, Any] = {
            "img": np.full((40, 60, 3), 9, np.uint8),
            "gt_seg_map": labels,
            "gt_other": labels,
            "seg_fields": ["gt_seg_map", "gt_other"],
        }
        results = step(results)
        assert np.array_equal(results["gt_seg_map"], results["gt_other"])
        assert set(np.unique(results["gt_seg_map"])) <= {0, 255}
        turned += bool((results["gt_seg_map"] == 255).any())
    assert 70 < turned < 130


def test_quarter_turns_are_exact_and_all_ways_are_equally_likely() -> None:
    np.random.seed(0)
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    seen: dict[bytes, int] = {}
    for _ in range(400):
        results = RandomQuarterTurn()(
            {"img": labels[..., None].copy(), "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]}
        )
        turned = results["gt_seg_map"]
        assert np.array_equal(results["img"][..., 0], turned)
        if "img_shape" in results:
            assert results["img_shape"] == turned.shape
        seen[bytes(turned.shape) + turned.tobytes()] = (
            seen.get(bytes(turned.shape) + turned.tobytes(), 0) + 1
        )
    assert len(seen) == 4 and min(seen.values()) > 60


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="max_angle is 0; allowed"):
        RandomRotation(max_angle=0)
    with pytest.raises(ValueError, match=r"prob is 1\.5; allowed"):
        RandomRotation(prob=1.5)
    with pytest.raises(ValueError, match="prob is -1; allowed"):
        RandomQuarterTurn(prob=-1)
