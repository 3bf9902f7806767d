"""Reading images and masks from files, by stated rules and without silent damage.

Images become ``uint8``. A model of three channels (``in_channels=3``) gets BGR, any other number
c gets the bands in the order of the file:

    file                             three channels             c channels
    grey, 1 bit, TIFF of one band    three equal channels       c = 1: itself; else an error
    colour (RGB)                     itself                     an error
    palette                          its colours                an error
    with alpha (LA, RGBA)            alpha is dropped           c = 2, 4: bands, alpha the last
    16 bits a band                   the high byte is kept      the high byte is kept
    32 bits, float                   an error                   an error
    TIFF of n bands                  n = 3; of more, if they   n = c, else an error
                                     are RGB and others, RGB
    TIFF of n pages of one band      the first page             n = c, else an error
    EXIF or TIFF orientation         applied                    applied

Masks: PNG or TIFF, the stored numbers themselves: grey values of 1 to 16 bits (TIFF: also 32, if
no value is above 65535), palette indices, or RGB colours of 8 bits, where an alpha channel is
dropped. An orientation is applied to masks as well, so a pair agrees as shown.
"""

from __future__ import annotations

import io
import os
from typing import Any, Union

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from mmseg_eomt.errors import BadFileError
from mmseg_eomt.images import formats
from mmseg_eomt.images.formats import SWAPS_SIDES, TIFF_MAGIC, to_bytes, turn

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MASK_SUFFIX = ".png"
MASK_SUFFIXES = (".png", ".tif", ".tiff")
MASK_FORMATS = ("PNG", "TIFF")

_ORIENTATION = 0x0112  # EXIF tag
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # TIFF tags of the stored size
_TIFF_BITS, _TIFF_PLANES = 258, 284
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif")
_PNG_MAGIC = b"\x89PNG"
_PNG_GREY = 0  # colour type in a PNG's IHDR chunk
_PNG_COLORS = (2, 6)  # RGB, RGBA
_REDUCTIONS = (
    (8, int(cv2.IMREAD_REDUCED_COLOR_8)),
    (4, int(cv2.IMREAD_REDUCED_COLOR_4)),
    (2, int(cv2.IMREAD_REDUCED_COLOR_2)),
)
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str, *, channels: int = 3, min_pixels: int | None = None) -> NDArray[np.uint8]:
    """Reads an image.

    Args:
        path (str): The file.
        channels (int): Channels that the model takes. Defaults to 3.
        min_pixels (int, optional): How many pixels suffice: a large JPEG of three channels is
            decoded at 1/2, 1/4 or 1/8 of its sides, the smallest that leaves so many, in about a
            third of the time. Defaults to None: all of them.

    Returns:
        ndarray: ``uint8 [H, W, channels]``, BGR if there are three.

    Raises:
        FileNotFoundError: If there is no such file.
        BadFileError: If it cannot be read whole, or has another number of channels.
    """
    content = read_bytes(path)
    if channels != 3:
        return _read_bands(content, path, channels)
    # OpenCV turns TIFFs by itself whatever it is told, and older ones fill up a JPEG that was
    # cut off; Pillow does neither.
    if content[:4] in TIFF_MAGIC or _jpeg_without_end(content):
        return _decode_with_pillow(content, path)
    flags = _reduction(content, min_pixels) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        # Pillow reads some files that OpenCV does not; otherwise it says what is wrong.
        return _decode_with_pillow(content, path)
    return np.asarray(turn(image, _orientation(content)), dtype=np.uint8)


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image of `read_image` as a picture, ``uint8 [H, W, 3]`` RGB.

    Of more than three bands the first three are shown as red, green and blue, of fewer the first
    as grey.
    """
    channels = image.shape[2]
    if channels == 3:
        return image[..., ::-1]
    return image[..., :3] if channels > 3 else np.repeat(image[..., :1], 3, axis=2)


def read_mask(path: str) -> NDArray[Any]:
    """Reads a mask as the numbers stored in it.

    Args:
        path (str): A PNG or TIFF file: grey of 1 to 16 bits, palette (read as indices), or RGB.

    Returns:
        ndarray: ``uint8`` or ``uint16`` ``[H, W]``, or ``uint8 [H, W, 3]`` RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        BadFileError: If it cannot be read whole, or holds no such numbers.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=MASK_FORMATS) as file:
            pages = int(getattr(file, "n_frames", 1))
            if pages > 1:
                raise ValueError(f"it has {pages} pages, a mask has one")
            picture = ImageOps.exif_transpose(file)
            mode = picture.mode
            mask = np.asarray(picture)
    except Exception as error:  # Pillow raises many kinds
        raise BadFileError(
            f"{path}: not readable as a PNG mask ({error}); masks are PNG or TIFF. Write it again "
            "as PNG, or remove the image and the mask."
        ) from error
    png = content[:4] == _PNG_MAGIC
    bits, color_type = (content[24], content[25]) if png else (8, -1)
    if mask.ndim == 3:
        if mode not in ("RGB", "RGBA", "RGBX") or (bits == 16 and color_type in _PNG_COLORS):
            raise BadFileError(
                f"{path}: the mask has {mask.shape[2]} channels (mode {mode}, {bits} bits); "
                "allowed are grey or palette masks whose pixel values are class ids, and RGB masks "
                "of 8 bits. Convert it."
            )
        return np.ascontiguousarray(mask[..., :3])
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8)
    if mask.dtype.kind == "f" or (mask.dtype.kind == "i" and _outside_sixteen_bits(mask)):
        raise BadFileError(
            f"{path}: the mask holds {mask.dtype} from {mask.min()} to {mask.max()}; allowed are "
            "whole numbers from 0 to 65535. Write it with 8 or 16 bits."
        )
    if mask.dtype.itemsize > 1:
        return mask.astype(np.uint16, copy=False)  # in the byte order of this machine
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
        BadFileError: If the header cannot be read.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            if isinstance(file, TiffImagePlugin.TiffImageFile):
                # Pillow has already turned the size of a TIFF, or not, depending on its version.
                width, height = file.tag_v2[_TIFF_WIDTH], file.tag_v2[_TIFF_HEIGHT]
            # Pillow's getexif() would decode the pixels of a PNG without EXIF.
            if (file.format != "PNG" or "exif" in file.info) and (
                file.getexif().get(_ORIENTATION) in SWAPS_SIDES
            ):
                return height, width
            return width, height
    except FileNotFoundError:
        raise
    except Exception as error:
        try:
            # Pillow knows TIFFs of some layouts only.
            width, height, orientation = formats.size_of(path)
        except Exception:  # the first error says more
            raise BadFileError(
                f"{path}: unreadable ({error}). Replace the file, or remove it together with its "
                "partner."
            ) from error
        return (height, width) if orientation in SWAPS_SIDES else (width, height)


def read_bytes(path: str) -> bytes:
    """The content of a file; an empty file is a `BadFileError`."""
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise BadFileError(f"{path}: the file is empty. Replace it, or remove it and its partner.")
    return content


def _read_bands(content: bytes, path: str, channels: int) -> NDArray[np.uint8]:
    """The bands as stored, ``uint8 [H, W, channels]``."""
    try:
        if content[:4] in TIFF_MAGIC:
            bands, orientation = formats.read_bands(content)
            bands = turn(bands, orientation)
        else:
            with Image.open(io.BytesIO(content)) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode in ("1", "P", "PA"):
                    picture = picture.convert("L" if picture.mode == "1" else "RGB")
                bands = np.asarray(picture)
                if picture.mode in _SIXTEEN_BITS:
                    bands = bands.astype(np.uint16)
    except Exception as error:  # Pillow and tifffile raise many kinds
        raise _unreadable(path, error) from error
    bands = to_bytes(bands[..., None] if bands.ndim == 2 else bands, path)
    if bands.shape[2] != channels:
        raise BadFileError(
            f"{path}: the image has {bands.shape[2]} channels, the model takes {channels} "
            "(model.backbone.in_channels). Set in_channels to the channels of the files, or "
            "convert the file."
        )
    return np.ascontiguousarray(bands)


def _decode_with_pillow(content: bytes, path: str) -> NDArray[np.uint8]:
    """``uint8 [H, W, 3]`` BGR."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            if isinstance(file, TiffImagePlugin.TiffImageFile) and _deep_planes(file):
                raise ValueError("Pillow takes separate planes of 16 bits for planes of 8")
            image = ImageOps.exif_transpose(file)
            if image.mode in _SIXTEEN_BITS:
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode == "F":
                raise ValueError("it holds floating-point values; convert it to 8 or 16 bits")
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception as error:  # Pillow raises many kinds
        if content[:4] in TIFF_MAGIC:
            # Pillow knows TIFFs of some layouts only.
            return np.ascontiguousarray(_read_bands(content, path, 3)[..., ::-1])
        raise _unreadable(path, error) from error


def _deep_planes(file: TiffImagePlugin.TiffImageFile) -> bool:
    bits = file.tag_v2.get(_TIFF_BITS, (8,))
    return file.tag_v2.get(_TIFF_PLANES, 1) == 2 and int(max(bits)) > 8


def _unreadable(path: str, error: Exception) -> BadFileError:
    return BadFileError(
        f"{path}: unreadable image ({error}). Replace the file, or remove it and its mask."
    )


def _outside_sixteen_bits(mask: NDArray[Any]) -> bool:
    return mask.size > 0 and bool(mask.min() < 0 or mask.max() > 65535)


def _reduction(content: bytes, min_pixels: int | None) -> int:
    """OpenCV's flag for the smallest size of a JPEG that has enough pixels."""
    whole = int(cv2.IMREAD_COLOR)
    if min_pixels is None or content[:2] != b"\xff\xd8":
        return whole
    try:
        with Image.open(io.BytesIO(content)) as file:
            width, height = file.size
    except Exception:  # Pillow raises many kinds; decoding says what is wrong
        return whole
    for divisor, flag in _REDUCTIONS:
        if (width // divisor) * (height // divisor) >= min_pixels:
            return flag
    return whole


def _jpeg_without_end(content: bytes) -> bool:
    return content[:2] == b"\xff\xd8" and not content.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")


def _orientation(content: bytes) -> int:
    # Scanning for the marks is far cheaper than opening every image twice.
    if not any(mark in content for mark in _EXIF_MARKS):
        return 1
    with Image.open(io.BytesIO(content)) as file:
        return int(file.getexif().get(_ORIENTATION, 1))


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
