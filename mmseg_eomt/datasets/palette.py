"""Colours for classes that were given none."""

from __future__ import annotations

import colorsys

# Consecutive hues lie far apart when they advance by the golden ratio's fraction of a turn.
_GOLDEN_TURN = 0.6180339887498949
_SATURATION_VALUE = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colours. The first n are the same for every ``count >= n``.

    Args:
        count (int): Number of colours.

    Returns:
        list[tuple[int, int, int]]: Colours of 0 to 255, none twice and none black.
    """
    colors: dict[tuple[int, int, int], None] = {}
    step = 0
    while len(colors) < count:
        saturation, value = _SATURATION_VALUE[step % len(_SATURATION_VALUE)]
        rgb = colorsys.hsv_to_rgb(step * _GOLDEN_TURN % 1.0, saturation, value)
        red, green, blue = (round(channel * 255) for channel in rgb)
        colors.setdefault((red, green, blue))
        step += 1
    return list(colors)
