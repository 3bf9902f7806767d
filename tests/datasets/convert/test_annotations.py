"""Pixels of shapes against pycocotools, Pillow and the plain formula."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmseg_eomt.datasets.convert.annotations import circle_mask, polygon_mask, run_length_mask

coco = pytest.importorskip("pycocotools.mask")


def star(rng: np.random.Generator, corners: int, size: float) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in rng.uniform(-5, size + 5, (corners, 2))]


def crossing_number(points: list[tuple[float, float]], x: float, y: float) -> bool:
    """The textbook's test of a point in a polygon."""
    inside = False
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            inside = not inside
    return inside


@pytest.mark.parametrize("seed", range(8))
def test_polygon_holds_the_pixels_whose_centres_are_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = star(rng, int(rng.integers(3, 9)), 24)  # self-crossing and beyond the border
    mask = polygon_mask(points, height=23, width=27)
    wanted = [[crossing_number(points, x + 0.5, y + 0.5) for x in range(27)] for y in range(23)]
    assert mask.any()
    assert np.array_equal(mask, wanted)


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    left, right = [(0, 0), (7.3, 0), (3.1, 20), (0, 20)], [(7.3, 0), (20, 0), (20, 20), (3.1, 20)]
    masks = [polygon_mask(points, height=20, width=20) for points in (left, right)]
    assert np.array_equal(masks[0] ^ masks[1], np.ones((20, 20), bool))
    assert not (masks[0] & masks[1]).any()
    exact = polygon_mask([(2, 3), (6, 3), (6, 9), (2, 9)], height=20, width=20)
    assert exact.sum() == 4 * 6 and exact[3:9, 2:6].all()


@pytest.mark.parametrize("seed", range(6))
def test_polygon_agrees_with_pycocotools_and_pillow_up_to_its_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(12, 40, 9)
    points = [
        (float(50 + r * np.cos(a)), float(45 + r * np.sin(a)))
        for a, r in zip(angles, radii, strict=True)
    ]
    mask = polygon_mask(points, height=90, width=100)
    flat = [number for point in points for number in point]
    theirs = coco.decode(coco.frPyObjects([flat], 90, 100))[..., 0].astype(bool)
    picture, outline = (Image.new("L", (100, 90)) for _ in range(2))
    shifted = [(x - 0.5, y - 0.5) for x, y in points]  # Pillow counts from the pixels' centres
    ImageDraw.Draw(picture).polygon(shifted, fill=1)
    ImageDraw.Draw(outline).line(shifted + shifted[:2], fill=1, width=3)
    edge = np.asarray(outline) > 0
    assert mask.sum() > 300
    for other in (theirs, np.asarray(picture) > 0):
        assert not ((mask != other) & ~edge).any()
        assert (mask & other).sum() / (mask | other).sum() > 0.9
    assert (mask & theirs).sum() / (mask | theirs).sum() > 0.97


def test_circle_has_the_area_of_a_circle() -> None:
    mask = circle_mask((30.0, 25.0), 20, height=60, width=60)
    assert abs(mask.sum() - np.pi * 400) < 10
    assert mask[25, 10] and not mask[25, 9] and mask[25, 49] and not mask[25, 50]


@pytest.mark.parametrize("seed", range(10))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 90, 2))
    smooth = rng.random((height, width)) < rng.choice([0.02, 0.5, 0.98])
    mask = np.repeat(smooth, 3, axis=0)  # long and short runs
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    height *= 3
    text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert np.array_equal(run_length_mask(text, height=height, width=width), mask)
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    plain = {"size": [height, width], "counts": counts}
    assert np.array_equal(run_length_mask(plain, height=height, width=width), mask)


def test_broken_run_lengths_say_what_is_wrong() -> None:
    good = coco.encode(np.asfortranarray(np.eye(40, dtype=np.uint8)))["counts"].decode()
    cases = [
        ({"size": [4, 5], "counts": [20]}, "size \\[4, 5\\].*\\[5, 4\\]"),
        ({"size": [5, 4], "counts": [3, 2]}, "add up to 5 pixels, the image has 20"),
        ({"size": [5, 4], "counts": [25, -5]}, "add up to 20"),
        ({"size": [5, 4], "counts": [2.5]}, "counts is \\[2.5\\]"),
        ({"size": [5, 4], "counts": good}, "add up to 1600"),
        ({"size": [5, 4], "counts": "\t0"}, "no character of run lengths"),
        ({"size": [5, 4], "counts": "P"}, "cut off"),
    ]
    for encoded, message in cases:
        with pytest.raises(ValueError, match=message):
            run_length_mask(encoded, height=5, width=4)


def test_polygon_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 3 corners"):
        polygon_mask([(0, 0), (1, 1)], height=5, width=5)
    with pytest.raises(ValueError, match="no finite number"):
        polygon_mask([(0, 0), (1, 1), (float("nan"), 2)], height=5, width=5)
