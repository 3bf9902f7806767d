"""Resizing a part of an image as if the whole had been resized; the size of an image at test."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pillow's layout by channel count. CMYK only because it is four channels without a meaning to
# `resize`, which would multiply RGBA by its alpha.
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


def resize_region(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    top: int,
    left: int,
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    """Pixels ``[top:top+height, left:left+width]`` of ``image`` resized to ``size``.

    Bilinear with antialiasing, by Pillow (fixed-point on bytes). Only the source pixels that the
    region needs are read. Equal to cropping the whole resized image up to the rounding of Pillow's
    two passes, 2 grey levels: at random scales of pure noise 0.6 % of the values differ by 1 and
    one in a million by 2; at simple ratios such as 1/2 more ties are rounded the other way.

    Args:
        image (ndarray): ``uint8 [H, W, C]``.
        size (tuple[int, int]): Height and width of the whole resized image.
        top (int): First row of the region.
        left (int): First column of the region.
        height (int): Rows of the region.
        width (int): Columns of the region.

    Returns:
        ndarray: ``uint8 [height, width, C]``.
    """
    rows, cols = image.shape[:2]
    y_step, x_step = rows / size[0], cols / size[1]
    # The triangle filter reaches one output pixel (at least one source pixel) beyond the region;
    # one more covers its rounding.
    y_margin, x_margin = max(y_step, 1.0) + 1, max(x_step, 1.0) + 1
    y_low = max(0, int(top * y_step - y_margin))
    x_low = max(0, int(left * x_step - x_margin))
    y_high = min(rows, int((top + height) * y_step + y_margin) + 1)
    x_high = min(cols, int((left + width) * x_step + x_margin) + 1)
    box = (
        max(0.0, left * x_step - x_low),
        max(0.0, top * y_step - y_low),
        min(float(x_high - x_low), (left + width) * x_step - x_low),
        min(float(y_high - y_low), (top + height) * y_step - y_low),
    )
    source = image[y_low:y_high, x_low:x_high]
    channels = image.shape[2]
    # Pillow has no layout for other counts; three and four channels go in one pass.
    parts = [source] if channels in _MODES else [source[..., c : c + 1] for c in range(channels)]
    resized = [_resize_box(part, (width, height), box) for part in parts]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2)


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``uint8 [H, W, C]`` resized to ``size`` (height, width), bilinear with antialiasing."""
    return resize_region(image, size, top=0, left=0, height=size[0], width=size[1])


def resize_labels_region(
    labels: NDArray[Any],
    size: tuple[int, int],
    *,
    top: int,
    left: int,
    height: int,
    width: int,
) -> NDArray[Any]:
    """`resize_region` for labels ``[H, W]``: the source pixel under each output pixel's centre.

    Exactly equal to cropping the whole resized map.
    """
    rows, cols = labels.shape
    y = ((np.arange(top, top + height) + 0.5) * (rows / size[0])).astype(np.intp)
    x = ((np.arange(left, left + width) + 0.5) * (cols / size[1])).astype(np.intp)
    # A centre can be rounded onto the far edge of the last pixel.
    chosen: NDArray[Any] = labels[np.minimum(y, rows - 1)][:, np.minimum(x, cols - 1)]
    return chosen


def _resize_box(
    image: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    channels = image.shape[2]
    if channels == 1:
        picture = Image.fromarray(np.ascontiguousarray(image[..., 0]))
    else:
        height, width = image.shape[:2]
        data = np.ascontiguousarray(image)
        picture = Image.frombuffer(
            _MODES[channels], (width, height), data, "raw", _MODES[channels], 0, 1
        )
    # A copy, since arrays over a picture are read-only.
    resized = np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box))
    return resized.reshape(size[1], size[0], channels)


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
