"""Reads one image and its mask and keeps what a check needs: a few hundred bytes a pair."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.datasets.file_pairs import FilePair
from mmseg_eomt.images.reading import read_image, read_mask

MAX_VALUES = 300  # distinct mask values kept of one file; more are no class ids
_FEW_LEVELS = 32  # a photograph has more grey levels
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
    b"%PDF": "PDF",
    b"<!DO": "an HTML page",
    b"<htm": "an HTML page",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    b"PK\x03\x04": "a ZIP archive",
}
# cv2.error and MemoryError: of pictures too large to be decoded.
_UNUSABLE = (ValueError, OSError, MemoryError, cv2.error)
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"


@dataclass(slots=True)
class Fault:
    """Why a file could not be used: a finding's code, and the words."""

    code: str
    detail: str


@dataclass(slots=True)
class PairFacts:
    """What was learnt from one pair.

    Attributes:
        image_fault, mask_fault (Fault | None): Set if the file cannot be used.
        image_size, mask_size (tuple[int, int]): Width and height, (0, 0) if unreadable.
        image_digest, mask_digest (bytes): Of the pixels, so that a picture saved in another
            lossless format is the same picture.
        flat_image (bool): The image is grey with few levels, as masks are.
        mask_is_image (bool): The mask holds the grey values of the image.
        values (dict): Pixels by mask value (a tuple for a colour); the most frequent ones.
        num_values (int): Number of distinct mask values.
    """

    pair: FilePair
    image_fault: Fault | None = None
    mask_fault: Fault | None = None
    image_size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    image_digest: bytes = b""
    mask_digest: bytes = b""
    flat_image: bool = False
    mask_is_image: bool = False
    values: dict[Hashable, int] = field(default_factory=dict)
    num_values: int = 0


def read_pair(pair: FilePair, *, channels: int = 3) -> PairFacts:
    """Reads both files whole; never raises for a file's content."""
    facts = PairFacts(pair)
    image = None
    try:
        image = read_image(pair.image, channels=channels)
        facts.image_size = (image.shape[1], image.shape[0])
        facts.image_digest = _digest(image)
        facts.flat_image = _is_flat(image)
    except _UNUSABLE as error:
        facts.image_fault = _fault(pair.image, error, "image")
    mask = _read_mask(facts)
    if image is not None and mask is not None and facts.num_values > _FEW_LEVELS:
        facts.mask_is_image = _shows_image(mask, image)
    return facts


def read_mask_only(pair: FilePair) -> PairFacts:
    """Reads the mask of a pair and leaves its image alone."""
    facts = PairFacts(pair)
    _read_mask(facts)
    return facts


def _read_mask(facts: PairFacts) -> NDArray[Any] | None:
    path = facts.pair.mask
    try:
        mask: NDArray[Any] = read_mask(path)
        facts.mask_size = (mask.shape[1], mask.shape[0])
        facts.mask_digest = _digest(mask)
        facts.values, facts.num_values = count_values(mask)
    except _UNUSABLE as error:
        facts.mask_fault = _fault(path, error, "mask")
        return None
    return mask


def count_values(mask: NDArray[Any]) -> tuple[dict[Hashable, int], int]:
    """Counts the pixels of each value.

    Args:
        mask (ndarray): ``[H, W]`` of whole numbers, or ``[H, W, C]`` of colours.

    Returns:
        tuple: Pixels by value (the `MAX_VALUES` most frequent ones, in ascending value), and the
        number of distinct values.
    """
    if mask.ndim == 3:
        colors, numbers = np.unique(mask.reshape(-1, mask.shape[2]), axis=0, return_counts=True)
        keys: list[Hashable] = [tuple(int(c) for c in color) for color in colors]
    elif mask.dtype in (np.uint8, np.uint16):
        histogram = np.bincount(mask.ravel())
        found = np.flatnonzero(histogram)
        keys, numbers = found.tolist(), histogram[found]
    else:
        found, numbers = np.unique(mask, return_counts=True)
        keys = found.tolist()
    if len(keys) > MAX_VALUES:
        chosen = np.sort(np.argsort(-numbers, kind="stable")[:MAX_VALUES])
        return {keys[i]: int(numbers[i]) for i in chosen}, len(keys)
    return dict(zip(keys, map(int, numbers), strict=True)), len(keys)


def content_kind(path: str) -> str:
    """What a file is by its first bytes: 'JPEG', 'an HTML page', ..., '' if not recognised."""
    with open(path, "rb") as file:
        head = file.read(32)
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def _digest(pixels: NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _is_flat(image: NDArray[np.uint8]) -> bool:
    step = max(1, image.shape[0] * image.shape[1] // 65536)
    pixels = image.reshape(-1, image.shape[2])[::step]
    if bool((pixels != pixels[:, :1]).any()):
        return False
    return len(np.unique(pixels[:, 0])) <= _FEW_LEVELS


def _shows_image(mask: NDArray[Any], image: NDArray[np.uint8]) -> bool:
    if mask.shape[:2] != image.shape[:2] or image.shape[2] != 3:
        return False
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.int32)
    other = mask.max(axis=2) if mask.ndim == 3 else mask
    # Half of the values equal up to rounding and compression: no mask does that by chance.
    return bool(np.mean(np.abs(grey - other.astype(np.int32)) <= 4) > 0.5)


def _fault(path: str, error: Exception, what: str) -> Fault:
    text = str(error).removeprefix(f"{path}: ")
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return Fault(f"unreadable_{what}", f"a link to {os.readlink(path)}, which is missing")
        return Fault(f"unreadable_{what}", "the file vanished during the check")
    if isinstance(error, OSError):
        return Fault(f"unreadable_{what}", error.strerror or text)
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        return Fault(f"empty_{what}_file", "0 bytes")
    kind = content_kind(path)
    if what == "mask" and kind == "JPEG":
        return Fault("jpeg_mask", "a JPEG by its content: compression changes class ids")
    if what == "mask" and "channels" in text:
        return Fault("mask_mode", text)
    ended = content.rstrip(b"\0\r\n ")
    cut = (kind == "JPEG" and not ended.endswith(_JPEG_END)) or (
        kind == "PNG" and _PNG_END not in content
    )
    if cut or "truncated" in text:
        return Fault(f"truncated_{what}", f"cut off after {len(content)} bytes")
    if not content.strip(b"\0"):
        return Fault(f"unreadable_{what}", f"{len(content)} zero bytes")
    suffix = os.path.splitext(path)[1].lower()
    if kind.startswith(("a ", "an ", "PDF")) or (what == "mask" and kind not in ("", "PNG")):
        return Fault(f"unreadable_{what}", f"ends in {suffix} but is {kind}")
    return Fault(f"unreadable_{what}", text)
