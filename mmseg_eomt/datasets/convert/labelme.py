"""labelme's JSON files to masks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.datasets.convert.annotations import (
    circle_mask,
    files_by_stem,
    image_of_stem,
    images_by_stem,
    number_names,
    polygon_mask,
    read_json,
)
from mmseg_eomt.datasets.convert.output import IGNORE_VALUE, Report, Sample, Split, write_dataset

# Names with a meaning of their own in labelme's label files.
_IGNORE, _BACKGROUND = "__ignore__", "_background_"
SHAPES = ("polygon", "rectangle", "circle", "mask")


def convert_labelme(
    splits: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    labels: Path | None = None,
    skip_shapes: bool = False,
    unlabelled: str = "background",
    ignore_classes: Sequence[str] = (),
    force: bool = False,
    copy_images: bool = False,
) -> Report:
    """Converts labelme's JSON files: polygons, rectangles, circles and masks.

    A JSON file belongs to the image of equal stem. Where shapes overlap, the later one is on top.
    Shapes named ``__ignore__`` are unlabelled, those named ``_background_`` are background.

    Args:
        splits (Mapping): Folder of JSON files and folder of images by split; often the same.
        out (Path): Folder to make.
        labels (Path, optional): Text file with one class name a line, which gives their order.
            Defaults to None: all names found, sorted.
        skip_shapes (bool): Leave out points and lines, which have no area and are otherwise an
            error. Defaults to False.
        unlabelled (str): See `number_names`. Defaults to ``'background'``.
        ignore_classes (Sequence[str]): See `write_dataset`. Defaults to ().
        force (bool): See `write_dataset`. Defaults to False.
        copy_images (bool): See `write_dataset`. Defaults to False.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a shape is wrong; names the file and the shape.
    """
    shapes: dict[str, dict[str, tuple[Path, list[dict[str, Any]]]]] = {}
    skipped = 0
    for name, (folder, _) in splits.items():
        shapes[name] = {}
        for stem, (path, *_rest) in files_by_stem(folder, (".json",)).items():
            listed = _read(path)
            kept = [s for s in listed if not skip_shapes or s["shape_type"] in SHAPES]
            skipped += len(listed) - len(kept)
            shapes[name][stem] = path, kept
        if not shapes[name]:
            raise FileNotFoundError(f"{folder}: no JSON file. Give the folder labelme saved to.")
    found = {
        shape["label"]
        for files in shapes.values()
        for _, listed in files.values()
        for shape in listed
    } - {_IGNORE, _BACKGROUND}
    names = sorted(found) if labels is None else read_names(labels)
    unknown = sorted(found - set(names))
    if unknown:
        raise ValueError(
            f"{labels}: does not list {', '.join(unknown)}, which shapes are labelled with. Add "
            "the names, or correct the shapes."
        )
    classes, fill = number_names(names, unlabelled=unlabelled)
    values = {name: class_id for class_id, name in classes.items()}
    values.update({_IGNORE: IGNORE_VALUE, _BACKGROUND: fill})
    written = {}
    for name, files in shapes.items():
        root = splits[name][1]
        images = images_by_stem(root)
        samples = []
        for stem, (path, listed) in files.items():
            image = image_of_stem(images, stem, folder=root, origin=str(path))
            samples.append(Sample(image, stem, _Drawing(listed, values, fill), str(path)))
        written[name] = Split(root, samples, splits[name][0])
    return write_dataset(
        out,
        written,
        classes=classes,
        ignore_classes=ignore_classes,
        force=force,
        copy_images=copy_images,
        notes=[f"{skipped} points and lines are left out."] if skipped else [],
    )


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one a line; labelme's special names are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is given twice, or there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a text file with one name a line.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [line for line in lines if line and line not in (_IGNORE, _BACKGROUND)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f"{path}: {f'{twice} given twice' if twice else 'holds no name'}.")
    return names


class _Drawing:
    """The mask of a file's shapes."""

    def __init__(self, shapes: list[dict[str, Any]], values: dict[str, int], fill: int) -> None:
        self.shapes, self.values, self.fill = shapes, values, fill

    def __call__(self, height: int, width: int) -> NDArray[np.uint8]:
        mask = np.full((height, width), self.fill, dtype=np.uint8)
        for number, shape in enumerate(self.shapes):
            try:
                inside = _inside(shape, height, width)
            except ValueError as error:
                label = shape["label"]
                raise ValueError(f"shapes[{number}] ({label}): {error}.") from error
            mask[inside] = self.values[shape["label"]]
        return mask


def _read(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise ValueError(f"{path}: there is no list 'shapes'. Give labelme's JSON files only.")
    for number, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{path}: shapes[{number}]: the label is {label!r}, no name.")
        shape["shape_type"] = shape.get("shape_type") or "polygon"  # absent in old files
    return shapes


def _inside(shape: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    kind, points = shape["shape_type"], shape.get("points")
    if kind not in SHAPES:
        raise ValueError(
            f"the shape is a {kind}; allowed are {', '.join(SHAPES)}. Draw it anew, or leave "
            "points and lines out with --skip-shapes"
        )
    if kind == "polygon":
        return polygon_mask(points or [], height=height, width=width)
    corners = np.asarray(points, dtype=np.float64)
    if corners.shape != (2, 2) or not np.isfinite(corners).all():
        raise ValueError(f"a {kind} needs two points (x, y); found {points}")
    (x0, y0), (x1, y1) = corners
    if kind == "circle":  # the centre and a point of the line
        return circle_mask((x0, y0), math.hypot(x1 - x0, y1 - y0), height=height, width=width)
    if kind == "rectangle":
        around = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return polygon_mask(around, height=height, width=width)
    return _placed(shape.get("mask"), round(x0), round(y0), height, width)


def _placed(encoded: Any, left: int, top: int, height: int, width: int) -> NDArray[np.bool_]:
    """labelme's ``mask``: a PNG in base64 whose first pixel lies at ``(left, top)``."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as file:
            part = np.asarray(file.convert("L")) > 0
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"its mask is no PNG in base64 ({error})") from error
    rows, cols = part.shape
    if left < 0 or top < 0 or top + rows > height or left + cols > width:
        raise ValueError(
            f"its mask of {cols}x{rows} at ({left}, {top}) reaches beyond the image of "
            f"{width}x{height}; use the image that was annotated"
        )
    inside = np.zeros((height, width), dtype=np.bool_)
    inside[top : top + rows, left : left + cols] = part
    return inside
