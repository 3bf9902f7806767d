"""What annotation files hold: JSON, file and class names, shapes as masks.

One rule for every drawn shape: a pixel belongs to it if its centre does, where the pixel in
column x and row y covers [x, x+1) x [y, y+1) and has its centre at (x + 0.5, y + 0.5).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.datasets.label_table import MAX_CLASSES
from mmseg_eomt.errors import quoted
from mmseg_eomt.images.reading import IMAGE_SUFFIXES

BACKGROUND = "background"


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files, nested ones included, by their path below ``folder`` without suffix.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder}: {found}. Give the path of a folder.")
    result: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                stem = path.relative_to(folder).with_suffix("").as_posix()
                result.setdefault(stem, []).append(path)
    return result


def images_by_stem(folder: Path) -> dict[str, list[Path]]:
    """`files_by_stem` of the images."""
    return files_by_stem(folder, IMAGE_SUFFIXES)


def image_of_stem(images: dict[str, list[Path]], stem: str, *, folder: Path, origin: str) -> Path:
    """The one image of a stem.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several.
    """
    found = images.get(stem, [])
    if not found:
        raise FileNotFoundError(
            f"{origin}: there is no image {stem}.* in {folder} (allowed are "
            f"{', '.join(IMAGE_SUFFIXES)}). Add the image or remove the annotation."
        )
    if len(found) > 1:
        raise ValueError(
            f"{origin}: {', '.join(map(str, found))} have the same stem. Rename or remove one."
        )
    return found[0]


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a JSON file.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}). Export it again.") from error


def number_names(names: Sequence[str], *, unlabelled: str) -> tuple[dict[int, str], int]:
    """Numbers class names, and says what pixels without annotation are.

    Args:
        names (Sequence[str]): In the order to be numbered, from 1.
        unlabelled (str): ``'background'``: pixels without annotation are class 0, or the class of
            that name if there is one. ``'ignore'``: they are 255, unlabelled.

    Returns:
        tuple: Names by id, and the value of pixels without annotation.

    Raises:
        ValueError: If there are none or too many.
    """
    return with_background(dict(enumerate(names, start=1)), unlabelled=unlabelled)


def with_background(classes: dict[int, str], *, unlabelled: str) -> tuple[dict[int, str], int]:
    """`number_names` for classes that have numbers of 1 and more."""
    if not 1 <= len(classes) < MAX_CLASSES:
        raise ValueError(
            f"{len(classes)} classes; 1 to {MAX_CLASSES - 1} can be converted. Check the labels."
        )
    if unlabelled == "ignore":
        return dict(classes), 255
    for class_id, name in classes.items():
        if name.lower() == BACKGROUND:
            return dict(classes), class_id
    return {0: BACKGROUND, **classes}, 0


Mask = NDArray[np.bool_]


def polygon_mask(points: Sequence[Sequence[float]], *, height: int, width: int) -> Mask:
    """Pixels whose centres lie inside a polygon, by the even-odd rule.

    Args:
        points (Sequence): At least 3 corners ``(x, y)`` in pixels; they may lie outside.
        height (int): Rows.
        width (int): Columns.

    Returns:
        ndarray: ``bool [height, width]``.

    Raises:
        ValueError: If there are fewer than 3 corners, or a coordinate is not finite.
    """
    corners = np.asarray(points, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"a polygon needs at least 3 corners (x, y); found {quoted(points)}")
    if not np.isfinite(corners).all():
        raise ValueError(f"a corner of the polygon is no finite number: {quoted(points)}")
    x0, y0 = corners[:, 0], corners[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # Each edge flips everything to its right in the rows whose centres it spans.
    flips = np.zeros((height, width + 1), dtype=np.int32)
    for ax, ay, bx, by in zip(x0, y0, x1, y1, strict=True):
        low, high = min(ay, by), max(ay, by)
        first = int(np.clip(np.ceil(low - 0.5), 0, height))
        last = int(np.clip(np.ceil(high - 0.5), 0, height))
        if first >= last:
            continue
        rows = np.arange(first, last)
        crossings = ax + (rows + 0.5 - ay) * ((bx - ax) / (by - ay))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
        flips[rows, columns] += 1
    inside: Mask = np.cumsum(flips, axis=1)[:, :width] % 2 == 1
    return inside


def circle_mask(center: Sequence[float], radius: float, *, height: int, width: int) -> Mask:
    """Pixels whose centres lie within ``radius`` of ``center`` ``(x, y)``: ``bool [H, W]``."""
    y, x = np.ogrid[:height, :width]
    inside: Mask = (x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2 <= radius**2
    return inside


def run_length_mask(encoded: Any, *, height: int, width: int) -> Mask:
    """Decodes COCO's run lengths, plain (a list) or compressed (a string).

    Runs alternate between outside and inside, begin outside, and go down the columns.

    Args:
        encoded (dict): ``size`` ``[height, width]`` and ``counts``.
        height (int): Rows of the image.
        width (int): Columns of the image.

    Returns:
        ndarray: ``bool [height, width]``.

    Raises:
        ValueError: If the size is another, or the runs do not fill it.
    """
    size = encoded.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(
            f"the run lengths are of size {size} (height, width), the image of {[height, width]}"
        )
    counts = encoded.get("counts")
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        runs = counts
    else:
        raise ValueError(
            f"counts is {quoted(counts)}; allowed are a list of whole numbers or COCO's string"
        )
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(
            f"the runs add up to {sum(runs)} pixels, the image has {height * width}; the "
            "annotation is damaged or belongs to another image"
        )
    inside = np.arange(len(runs)) % 2 == 1
    flat: Mask = np.repeat(inside, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _decompress(text: bytes) -> list[int]:
    """COCO's string: 5 bits a character, low bits first; from the third on, differences.

    Source: the format of cocodataset/cocoapi, common/maskApi.c (rleFrString).
    """
    runs: list[int] = []
    value, shift = 0, 0
    for byte in text:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError(f"counts holds {chr(byte)!r}, which is no character of run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more to come
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("counts ends in the middle of a number; the annotation was cut off")
    return runs
