"""Any kind of image as the array that a model starts from."""

from __future__ import annotations

import os
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mmseg_eomt.images.reading import read_image

PixelsLike = Union[str, "os.PathLike[str]", Image.Image, NDArray[Any]]


def as_pixels(image: PixelsLike, *, channels: int = 3) -> NDArray[np.uint8]:
    """An image as `read_image` gives it.

    Args:
        image: A path; a PIL image; or an array `uint8 [H, W, channels]`, of three channels in RGB
            order, or `[H, W]` grey.
        channels: Channels that the model takes.

    Returns:
        `uint8 [H, W, channels]`, three channels as BGR. A path and a PIL image are turned by their
        EXIF orientation first.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it is no such image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), channels=channels)
    if isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image)
        image = np.asarray(turned.convert("RGB") if channels == 3 else turned)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}: give a path, PIL image or array.")
    if image.ndim == 2 and channels in (1, 3):
        image = np.repeat(image[..., None], channels, axis=2)
    if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8:
        raise ValueError(
            f"image is an array {image.dtype} {image.shape}: give uint8 [H, W, {channels}]"
            f"{' in RGB order' if channels == 3 else ''}."
        )
    return image[..., ::-1] if channels == 3 else image
