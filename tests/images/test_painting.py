from __future__ import annotations

import numpy as np
import pytest

from mmseg_eomt.images.painting import colourise, comparison, fallback_palette


def test_default_colours_differ() -> None:
    palette = fallback_palette(150)
    assert len(set(palette)) == 150
    assert fallback_palette(3) == palette[:3]


def test_labels_outside_the_classes_are_black() -> None:
    labels = np.array([[0, 1], [255, -1]])
    painted = colourise(labels, [(1, 2, 3), (4, 5, 6)])
    assert painted.tolist() == [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [0, 0, 0]]]


def test_legend_names_only_classes_that_occur_and_wraps() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    few = comparison(
        [(image, None, np.zeros((8, 8), dtype=int))],
        classes=[f"class {i}" for i in range(40)],
        palette=fallback_palette(40),
        tile=100,
    )
    many = comparison(
        [(image, None, np.arange(64).reshape(8, 8))],
        classes=[f"class {i}" for i in range(40)],
        palette=fallback_palette(40),
        tile=100,
    )
    assert many.shape[0] > few.shape[0]
    colours = {tuple(pixel) for pixel in many.reshape(-1, 3).tolist()}
    assert set(fallback_palette(40)) <= colours
    assert fallback_palette(40)[7] not in {tuple(p) for p in few.reshape(-1, 3).tolist()}


def test_nothing_to_draw_and_wrong_palettes_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        comparison([], classes=["a"], palette=[(0, 0, 0)])
    image, labels = np.zeros((2, 2, 3), dtype=np.uint8), np.zeros((2, 2), dtype=int)
    with pytest.raises(ValueError, match="1 classes but 2 colours"):
        comparison([(image, None, labels)], classes=["a"], palette=[(0, 0, 0), (1, 1, 1)])
