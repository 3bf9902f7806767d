"""Classes painted over an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.images.reading import as_rgb


def check_opacity(opacity: float) -> None:
    """An opacity that is no share is a ValueError."""
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity is {opacity}: it must lie between 0 and 1.")


def paint(
    image: NDArray[np.uint8],
    mask: NDArray[Any],
    palette: Mapping[int, tuple[int, int, int]],
    *,
    opacity: float,
) -> Image.Image:
    """An image with the colours of its classes over it.

    Args:
        image: `uint8 [H, W, C]` as of `as_pixels`.
        mask: Class ids `[H, W]`.
        palette: RGB colours by class id.
        opacity: Share of the class colours, 0 to 1.

    Raises:
        ValueError: If `opacity` is out of range, or mask and image differ in size.
    """
    check_opacity(opacity)
    pixels = as_rgb(image)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask is {mask.shape}, the image {pixels.shape[:2]}: sizes differ.")
    table = np.zeros((max(palette) + 1, 3), np.float32)
    for class_id, colour in palette.items():
        table[class_id] = colour
    mixed = pixels * (1.0 - opacity) + table[mask] * opacity
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
