"""The size of an image at test: short side to the window size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.images.resampling import resize


def covering_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The size, aspect kept, at which an image just covers a window on both sides.

    For a square window the short side becomes its side. Rounded as Python's `round` does (halves
    to even).

    Source: tue-mps/eomt @7bd19dd, training/mask_classification_semantic.py.

    Args:
        size (tuple[int, int]): Height and width of the image.
        window (tuple[int, int]): Height and width of the window.

    Returns:
        tuple[int, int]: Height and width.
    """
    factor = max(window[0] / size[0], window[1] / size[1])
    return round(size[0] * factor), round(size[1] * factor)


def resize_to_cover(image: NDArray[np.uint8], window: tuple[int, int]) -> NDArray[np.uint8]:
    """``uint8 [H, W, C]`` at its `covering_size`, bilinear with antialiasing on bytes."""
    size = covering_size((image.shape[0], image.shape[1]), window)
    return image if size == image.shape[:2] else resize(image, size)
