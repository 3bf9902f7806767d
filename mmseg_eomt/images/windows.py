"""Which windows cover an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def window_starts(length: int, window: int) -> list[int]:
    """Starts of the fewest windows that cover ``length`` pixels, overlapping evenly.

    The rule of the official code: ``ceil(length / window)`` windows; here in whole numbers, so
    that the last one always ends at the last pixel.

    Args:
        length (int): Pixels of the side.
        window (int): Pixels of the window, at most ``length``.

    Returns:
        list[int]: Ascending, the first is 0.
    """
    count = -(-length // window)
    return [index * (length - window) // max(count - 1, 1) for index in range(count)]


def wished_window(test_cfg: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the windows that a segmentor's ``test_cfg`` wishes for in an image.

    Args:
        test_cfg (dict): With ``mode`` and ``window_size``, as `EoMTSegmentor` has them.
        size (tuple[int, int]): Height and width of the image.
    """
    if test_cfg["mode"] == "whole":
        return size
    window = test_cfg["window_size"]
    if window is None:
        window = min(size)
    return (window, window) if isinstance(window, int) else (window[0], window[1])


def cover(
    size: tuple[int, int], window: tuple[int, int]
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Windows that cover an image; a window larger than the image shrinks to it.

    Args:
        size (tuple[int, int]): Height and width of the image.
        window (tuple[int, int]): Height and width wished for.

    Returns:
        tuple: Size of the windows, and the ``(top, left)`` of each, row by row.
    """
    height, width = (min(side, wish) for side, wish in zip(size, window, strict=True))
    return (height, width), [
        (top, left)
        for top in window_starts(size[0], height)
        for left in window_starts(size[1], width)
    ]
