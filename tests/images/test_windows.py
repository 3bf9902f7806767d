"""Windows cover every pixel, by the published rule."""

from __future__ import annotations

import itertools
import math

import pytest

from mmseg_eomt.images.windows import cover, window_starts


@pytest.mark.parametrize("window", [7, 64, 112, 224, 512])
def test_every_pixel_is_covered_by_the_fewest_windows(window: int) -> None:
    for length in range(window, 6 * window + 1):
        starts = window_starts(length, window)
        assert len(starts) == math.ceil(length / window)
        assert starts[0] == 0 and starts[-1] + window == length
        assert all(b - a <= window for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("size", [683, 768, 910, 1024, 1365, 2048])
def test_starts_are_those_of_the_official_code(size: int) -> None:
    """start_j = int(j * (S - overlap / (n - 1))), ``facts/eomt.md`` section 1.4."""
    window = 512
    count = math.ceil(size / window)
    step = window - (count * window - size) / (count - 1)
    assert window_starts(size, window) == [int(j * step) for j in range(count)]


def test_cover_shrinks_windows_to_small_images_and_tiles_both_axes() -> None:
    assert cover((50, 130), (64, 64)) == ((50, 64), [(0, 0), (0, 33), (0, 66)])
    window, starts = cover((100, 100), (64, 64))
    assert window == (64, 64) and starts == [(0, 0), (0, 36), (36, 0), (36, 36)]
