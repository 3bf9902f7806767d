"""COCO's JSON to masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.datasets.convert.annotations import (
    polygon_mask,
    read_json,
    run_length_mask,
    with_background,
)
from mmseg_eomt.datasets.convert.output import IGNORE_VALUE, Report, Sample, Split, write_dataset
from mmseg_eomt.datasets.label_table import MAX_CLASSES
from mmseg_eomt.errors import quoted

CROWD_RULES = ("class", "ignore", "skip")


def convert_coco(
    splits: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    crowd: str = "class",
    skip_boxes: bool = False,
    unlabelled: str = "background",
    ignore_classes: Sequence[str] = (),
    force: bool = False,
    copy_images: bool = False,
) -> Report:
    """Converts COCO's JSON with polygons and run lengths.

    Class ids are the category ids if all lie between 1 and 253; otherwise the categories are
    numbered from 1 in ascending id. Where annotations overlap, the later one in the file is on
    top. Polygons of one annotation are united. Crowds come below everything else.

    Args:
        splits (Mapping): JSON file and folder of images by split.
        out (Path): Folder to make.
        crowd (str): Pixels of annotations with ``iscrowd``: ``'class'`` gives them their class,
            ``'ignore'`` leaves them unlabelled, ``'skip'`` leaves the annotation out. Defaults to
            ``'class'``.
        skip_boxes (bool): Leave out annotations without a segmentation, which are otherwise an
            error. Defaults to False.
        unlabelled (str): See `number_names`. Defaults to ``'background'``.
        ignore_classes (Sequence[str]): See `write_dataset`. Defaults to ().
        force (bool): See `write_dataset`. Defaults to False.
        copy_images (bool): See `write_dataset`. Defaults to False.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If anything in the JSON is wrong; names the file and the annotation.
    """
    if crowd not in CROWD_RULES:
        raise ValueError(f"crowd is {crowd!r}; allowed are {', '.join(CROWD_RULES)}.")
    contents = {name: (path, _read(path)) for name, (path, _) in splits.items()}
    categories = _categories(contents)
    values = _values(categories)
    classes, fill = with_background(
        {values[i]: name for i, name in categories.items()}, unlabelled=unlabelled
    )
    notes = []
    if any(values[i] != i for i in categories):
        notes.append("category ids do not lie between 1 and 253: numbered anew from 1.")
    written = {}
    for name, (path, content) in contents.items():
        groups, skipped = _by_image(content, path, values, crowd, skip_boxes)
        if skipped:
            notes.append(f"{name}: {skipped} annotations without a segmentation are left out.")
        root = splits[name][1]
        written[name] = Split(
            root, [_sample(image, groups, root, path, fill) for image in content["images"]], path
        )
    return write_dataset(
        out,
        written,
        classes=classes,
        ignore_classes=ignore_classes,
        force=force,
        copy_images=copy_images,
        notes=notes,
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{path}: there is no list {key!r}. COCO's JSON has images, annotations and "
                "categories; give the file of an instance or stuff segmentation."
            )
        for entry in content[key]:
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise ValueError(f"{path}: {key}: {quoted(entry)} has no whole number as id.")
    return content


def _categories(contents: Mapping[str, tuple[Path, dict[str, Any]]]) -> dict[int, str]:
    result: dict[int, str] = {}
    first = ""
    for path, content in contents.values():
        here: dict[int, str] = {}
        for category in content["categories"]:
            name = category.get("name")
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{path}: categories: {quoted(category)} has no name.")
            if category["id"] in here or name in here.values():
                raise ValueError(f"{path}: categories: {quoted(category)} is given twice.")
            here[category["id"]] = name
        if first and here != result:
            raise ValueError(
                f"{path}: its categories differ from those of {first}: {quoted(here)} and "
                f"{quoted(result)}. Splits of a dataset have the same categories; export again."
            )
        result, first = here, str(path)
    return dict(sorted(result.items()))


def _values(categories: Mapping[int, str]) -> dict[int, int]:
    if all(0 < i < MAX_CLASSES for i in categories):
        return {i: i for i in categories}
    return {i: number for number, i in enumerate(sorted(categories), start=1)}


def _by_image(
    content: Mapping[str, Any],
    path: Path,
    values: Mapping[int, int],
    crowd: str,
    skip_boxes: bool,
) -> tuple[dict[int, list[tuple[int, int, Any]]], int]:
    """Value, id and segmentation of each image's annotations from bottom to top."""
    ids = [image["id"] for image in content["images"]]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{path}: images: id {twice} is given to two images.")
    below: dict[int, list[tuple[int, int, Any]]] = {i: [] for i in ids}
    above: dict[int, list[tuple[int, int, Any]]] = {i: [] for i in ids}
    skipped = 0
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        image, category = entry.get("image_id"), entry.get("category_id")
        if image not in below:
            raise ValueError(f"{where}: image_id {image!r} is no image of the file.")
        if category not in values:
            raise ValueError(
                f"{where}: category_id {category!r} is unknown; categories are {list(values)}."
            )
        if not entry.get("segmentation"):
            if not skip_boxes:
                raise ValueError(
                    f"{where}: has no segmentation, only a box. Annotate it, remove it, or leave "
                    "all such annotations out with --skip-boxes."
                )
            skipped += 1
            continue
        value = values[category]
        is_crowd = bool(entry.get("iscrowd"))
        if is_crowd and crowd == "skip":
            continue
        if is_crowd and crowd == "ignore":
            value = IGNORE_VALUE
        (below if is_crowd else above)[image].append((value, entry["id"], entry["segmentation"]))
    return {i: below[i] + above[i] for i in ids}, skipped


def _sample(
    image: Mapping[str, Any],
    groups: Mapping[int, list[tuple[int, int, Any]]],
    root: Path,
    path: Path,
    fill: int,
) -> Sample:
    name = image.get("file_name")
    origin = f"{path}: image {image['id']} ({name})"
    if (
        not isinstance(name, str)
        or not name
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise ValueError(f"{origin}: file_name must be a path below the folder of images.")
    file = root / name
    if not file.is_file():
        raise FileNotFoundError(
            f"{origin}: {file} does not exist. Correct the folder of images, add the image, or "
            "remove it from the JSON."
        )
    shapes = groups[image["id"]]
    stated = (image.get("height"), image.get("width"))

    def draw(height: int, width: int) -> NDArray[np.uint8]:
        if stated != (None, None) and stated != (height, width):
            raise ValueError(
                f"the JSON says {stated[1]}x{stated[0]} (width x height), the image is "
                f"{width}x{height} when shown. Use the image that was annotated."
            )
        mask = np.full((height, width), fill, dtype=np.uint8)
        for value, number, segmentation in shapes:
            try:
                mask[_inside(segmentation, height, width)] = value
            except ValueError as error:
                raise ValueError(f"annotation {number}: {error}.") from error
        return mask

    return Sample(file, Path(name).with_suffix("").as_posix(), draw, origin)


def _inside(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    if isinstance(segmentation, Mapping):
        return run_length_mask(segmentation, height=height, width=width)
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise ValueError(
            f"segmentation is {quoted(segmentation)}; allowed are a list of polygons [[x, y, x, y, "
            "...], ...] and run lengths {size, counts}"
        )
    inside = np.zeros((height, width), dtype=np.bool_)
    for numbers in segmentation:
        if len(numbers) % 2 or not all(type(n) in (int, float) for n in numbers):
            raise ValueError(f"the polygon {quoted(numbers)} is no list of pairs x, y")
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        inside |= polygon_mask(points, height=height, width=width)
    return inside
