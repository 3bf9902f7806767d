"""TIFF files with any number of bands, read as stored.

OpenCV multiplies bands that it takes for colours by one that it takes for alpha, and Pillow reads
some layouts only; tifffile gives the numbers themselves.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

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
