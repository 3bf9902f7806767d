"""Channels are dropped as often as told, and never all."""

from __future__ import annotations

import numpy as np
import pytest

from mmseg_eomt.datasets.transforms import ChannelDrop


def test_some_channels_are_filled_and_the_rest_untouched() -> None:
    np.random.seed(0)
    image = np.random.randint(1, 200, (6, 7, 4)).astype(np.uint8)
    counts = []
    for _ in range(300):
        result = ChannelDrop(max_dropped=9, prob=0.8, fill=255)({"img": image})["img"]
        dropped = [c for c in range(4) if (result[..., c] == 255).all()]
        kept = [c for c in range(4) if c not in dropped]
        assert np.array_equal(result[..., kept], image[..., kept])
        counts.append(len(dropped))
    assert image.max() < 255  # the original is untouched
    shares = np.bincount(counts, minlength=5) / 300
    assert shares[4] == 0
    assert np.abs(shares[:4] - [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3]).max() < 0.09


def test_a_single_channel_stays() -> None:
    image = np.ones((3, 3, 1), np.uint8)
    assert ChannelDrop(prob=1.0)({"img": image})["img"].all()


def test_wrong_options_are_named() -> None:
    for options, message in (
        ({"max_dropped": 0}, "max_dropped is 0; allowed"),
        ({"prob": 2.0}, "prob is 2.0; allowed"),
        ({"fill": 256}, "fill is 256; allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            ChannelDrop(**options)
