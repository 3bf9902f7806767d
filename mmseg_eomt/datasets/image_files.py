"""Reading images and masks from files, by stated rules and without silent damage.

Images: every format gives ``uint8`` BGR. EXIF orientation is applied; grey becomes three equal
channels; palettes are resolved; an alpha channel is dropped; of 16-bit channels the high byte is
kept. Masks: PNG, the stored numbers themselves (grey values or palette indices).
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MASK_SUFFIX = ".png"

_ORIENTATION = 0x0112  # EXIF tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # TIFF tags of the stored size
_SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif")
_PNG_GREY = 0  # colour type in a PNG's IHDR chunk


def read_image(path: str) -> NDArray[np.uint8]:
    """Reads an image.

    Args:
        path (str): The file.

    Returns:
        ndarray: ``uint8 [H, W, 3]``, BGR.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read whole.
    """
    content = read_bytes(path)
    # OpenCV turns TIFFs by itself whatever it is told, and older ones fill up a JPEG that was
    # cut off; Pillow does neither.
    if content[:4] in _TIFF_MAGIC or _jpeg_without_end(content):
        return _decode_with_pillow(content, path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        # Pillow reads some files that OpenCV does not; otherwise it says what is wrong.
        return _decode_with_pillow(content, path)
    return np.asarray(_turn(image, _orientation(content)), dtype=np.uint8)


def read_mask(path: str) -> NDArray[Any]:
    """Reads a mask as the numbers stored in it.

    Args:
        path (str): A PNG file: grey of 1 to 16 bits, or palette (read as indices).

    Returns:
        ndarray: ``uint8`` or ``uint16`` ``[H, W]``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read whole, or holds colours.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as file:
            mode = file.mode
            mask = np.asarray(file)
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(
            f"{path}: not readable as a PNG mask ({error}). Write it again as PNG, or remove the "
            "image and the mask."
        ) from error
    if mask.ndim != 2:
        raise ValueError(
            f"{path}: the mask has {mask.shape[2]} channels (mode {mode}); allowed are grey or "
            "palette PNGs whose pixel values are class ids. Convert colours to class ids."
        )
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8)
    if mask.dtype == np.int32:  # what older Pillows give for 16 bits
        return mask.astype(np.uint16)
    bits, color_type = content[24], content[25]
    if color_type == _PNG_GREY and bits in (2, 4):
        # Pillow stretches 2 and 4 bits of grey to 0..255; the file holds class ids.
        return np.asarray(mask // np.uint8(255 // (2**bits - 1)))
    return mask


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image as shown, from its header alone.

    The orientation of a PNG that stores EXIF behind its pixels is not seen here, but is when the
    image is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the header cannot be read.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            if isinstance(file, TiffImagePlugin.TiffImageFile):
                # Pillow has already turned the size of a TIFF, or not, depending on its version.
                width, height = file.tag_v2[_TIFF_WIDTH], file.tag_v2[_TIFF_HEIGHT]
            # Pillow's getexif() would decode the pixels of a PNG without EXIF.
            if (file.format != "PNG" or "exif" in file.info) and (
                file.getexif().get(_ORIENTATION) in _SWAPS_SIDES
            ):
                return height, width
            return width, height
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: unreadable ({error}). Replace the file, or remove it together with its "
            "partner."
        ) from error


def read_bytes(path: str) -> bytes:
    """The content of a file; an empty file is a `ValueError`."""
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError(f"{path}: the file is empty. Replace it, or remove it and its partner.")
    return content


def _decode_with_pillow(content: bytes, path: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("I", "I;16", "I;16L", "I;16B"):
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode == "F":
                raise ValueError("it holds floating-point values; convert it to 8 or 16 bits")
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(
            f"{path}: unreadable image ({error}). Replace the file, or remove it and its mask."
        ) from error


def _jpeg_without_end(content: bytes) -> bool:
    return content[:2] == b"\xff\xd8" and not content.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")


def _orientation(content: bytes) -> int:
    # Scanning for the marks is far cheaper than opening every image twice.
    if not any(mark in content for mark in _EXIF_MARKS):
        return 1
    with Image.open(io.BytesIO(content)) as file:
        return int(file.getexif().get(_ORIENTATION, 1))


def _turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Applies an EXIF orientation (1 to 8); other values mean nothing."""
    if orientation in _SWAPS_SIDES:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
