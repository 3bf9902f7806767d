"""Formats as stored: TIFF files with any number of bands, depths and turns.

OpenCV multiplies bands that it takes for colours by one that it takes for alpha, and Pillow reads
some layouts only; tifffile gives the numbers themselves.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from mmseg_eomt.errors import BadFileError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_ORIENTATION = 274  # TIFF tag


def read_bands(content: bytes) -> tuple[NDArray[Any], int]:
    """Reads all bands.

    Args:
        content (bytes): The file.

    Returns:
        tuple: ``[H, W, bands]`` as stored, not turned, and the orientation (1 to 8). Pages of
        equal size with one band each are bands, too; else the first page counts.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first: Any = file.pages[0]
        orientation = _orientation(first)
        if first.ndim == 2 and len(file.pages) > 1:
            pages: list[Any] = [page.asarray() for page in file.pages]
            if all(page.shape == pages[0].shape for page in pages):
                return np.stack(pages, axis=-1), orientation
        bands = np.asarray(first.asarray())
        if bands.ndim == 2:
            bands = bands[..., None]
        elif first.axes == "SYX":
            bands = bands.transpose(1, 2, 0)
        elif first.axes != "YXS":
            raise ValueError(f"its axes are {first.axes}; allowed are YX, YXS and SYX")
    return bands, orientation


def size_of(path: str) -> tuple[int, int, int]:
    """Stored width and height, and orientation, from the header of the first page."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        return int(page.imagewidth), int(page.imagelength), _orientation(page)


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)


SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def to_bytes(bands: NDArray[Any], path: str) -> NDArray[np.uint8]:
    if bands.dtype == np.uint16:
        return np.asarray(bands >> 8, dtype=np.uint8)
    if bands.dtype == np.bool_:
        return np.asarray(np.where(bands, 255, 0), dtype=np.uint8)
    if bands.dtype != np.uint8:
        raise BadFileError(
            f"{path}: the image holds {bands.dtype}; allowed are 8 and 16 bits without sign. "
            "Convert it."
        )
    return np.asarray(bands, dtype=np.uint8)


def turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Applies an EXIF orientation (1 to 8); other values mean nothing."""
    if orientation in SWAPS_SIDES:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
