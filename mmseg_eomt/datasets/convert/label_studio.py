"""Label Studio's brush export (one PNG per label and stroke) to masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.datasets.convert.annotations import (
    files_by_stem,
    images_by_stem,
    number_names,
    read_json,
)
from mmseg_eomt.datasets.convert.labelme import read_names
from mmseg_eomt.datasets.convert.output import Report, Sample, Split, write_dataset

# task-ID-annotation-ID-by-USER-TAG-LABEL-NUMBER; only LABEL may hold a hyphen. Source of the form:
# HumanSignal/label-studio-converter, brush.py.
_NAME = re.compile(r"task-(\d+)-annotation-(\d+)-by-([^-]*)-([^-]+)-(.+)-(\d+)")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what uploading puts before a file's name


class _Stroke(NamedTuple):
    task: int
    annotation: int
    label: str
    number: int
    path: Path


def convert_label_studio(
    splits: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    tasks: Sequence[Path],
    labels: Path | None = None,
    latest: bool = False,
    unlabelled: str = "background",
    ignore_classes: Sequence[str] = (),
    force: bool = False,
    copy_images: bool = False,
) -> Report:
    """Converts Label Studio's "brush labels to PNG" export.

    The PNGs name a task, not an image; the JSON export of the same project says which is which.
    Where labels overlap, the one with the higher class id is on top, since the export does not
    keep the order.

    Args:
        splits (Mapping): Folder of PNGs and folder of images by split.
        out (Path): Folder to make.
        tasks (Sequence[Path]): JSON exports with the tasks.
        labels (Path, optional): See `convert_labelme`. Defaults to None: all names, sorted.
        latest (bool): Of several annotations of a task take the one with the highest id;
            otherwise they are an error. Defaults to False.
        unlabelled (str): See `number_names`. Defaults to ``'background'``.
        ignore_classes (Sequence[str]): See `write_dataset`. Defaults to ().
        force (bool): See `write_dataset`. Defaults to False.
        copy_images (bool): See `write_dataset`. Defaults to False.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a name, a task or a mask is wrong.
    """
    names_of_tasks = _task_images(tasks)
    strokes = {name: _strokes(folder, latest) for name, (folder, _) in splits.items()}
    found = {stroke.label for listed in strokes.values() for stroke in listed}
    names = sorted(found) if labels is None else read_names(labels)
    unknown = sorted(found - set(names))
    if unknown:
        raise ValueError(f"{labels}: does not list {', '.join(unknown)}. Add the names.")
    classes, fill = number_names(names, unlabelled=unlabelled)
    values = {name: class_id for class_id, name in classes.items()}
    written = {}
    for name, listed in strokes.items():
        folder, root = splits[name]
        images = {
            path.name: (stem, path)
            for stem, paths in images_by_stem(root).items()
            for path in paths
        }
        samples = []
        for task in sorted({stroke.task for stroke in listed}):
            origin = f"{folder}: task {task}"
            stem, image = _image(names_of_tasks, task, images, root, origin)
            own = [(values[s.label], s.number, s.path) for s in listed if s.task == task]
            samples.append(Sample(image, stem, _Drawing(sorted(own), fill), origin))
        written[name] = Split(root, samples, folder)
    return write_dataset(
        out,
        written,
        classes=classes,
        ignore_classes=ignore_classes,
        force=force,
        copy_images=copy_images,
    )


def _task_images(paths: Sequence[Path]) -> dict[int, list[str]]:
    """Names that the image of a task may have."""
    result: dict[int, list[str]] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path}: holds no list of tasks. Give the export of form JSON.")
        for task in content:
            number = task.get("id") if isinstance(task, dict) else None
            data: Any = task.get("data", task) if isinstance(task, dict) else None
            texts = (
                [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
            )
            if type(number) is not int or not texts:
                raise ValueError(f"{path}: a task without id or image: {str(task)[:100]}.")
            base = [PurePosixPath(text.split("?")[0].replace("\\", "/")).name for text in texts]
            result[number] = base + [_UPLOAD.sub("", name) for name in base]
    return result


def _strokes(folder: Path, latest: bool) -> list[_Stroke]:
    strokes = []
    for paths in files_by_stem(folder, (".png",)).values():
        for path in paths:
            match = _NAME.fullmatch(path.stem)
            if match is None:
                raise ValueError(
                    f"{path}: the name is not task-ID-annotation-ID-by-USER-TAG-LABEL-NUMBER.png. "
                    "Give the folder of a 'brush labels to PNG' export."
                )
            task, annotation, _, _, label, number = match.groups()
            strokes.append(_Stroke(int(task), int(annotation), label, int(number), path))
    if not strokes:
        raise FileNotFoundError(f"{folder}: no PNG. Give the folder of the unpacked export.")
    annotations: dict[int, set[int]] = {}
    for stroke in strokes:
        annotations.setdefault(stroke.task, set()).add(stroke.annotation)
    several = {task: sorted(ids) for task, ids in annotations.items() if len(ids) > 1}
    if several and not latest:
        task, ids = next(iter(several.items()))
        raise ValueError(
            f"{folder}: {len(several)} tasks have several annotations (task {task}: {ids}). Remove "
            "all but one, or take the one with the highest id with --latest."
        )
    return [stroke for stroke in strokes if stroke.annotation == max(annotations[stroke.task])]


def _image(
    names: Mapping[int, list[str]],
    task: int,
    images: Mapping[str, tuple[str, Path]],
    root: Path,
    origin: str,
) -> tuple[str, Path]:
    if task not in names:
        raise ValueError(f"{origin}: is in no file of --tasks. Export the tasks again as JSON.")
    for name in names[task]:
        if name in images:
            return images[name]
    raise FileNotFoundError(
        f"{origin}: there is no image {' or '.join(dict.fromkeys(names[task]))} in {root}."
    )


class _Drawing:
    """The strokes of a task, lowest class first."""

    def __init__(self, strokes: list[tuple[int, int, Path]], fill: int) -> None:
        self.strokes, self.fill = strokes, fill

    def __call__(self, height: int, width: int) -> NDArray[np.uint8]:
        mask = np.full((height, width), self.fill, dtype=np.uint8)
        for value, _, path in self.strokes:
            try:
                with Image.open(path) as file:
                    inside = np.asarray(file.convert("L")) > 0
            except Exception as error:  # Pillow raises many kinds
                raise ValueError(f"{path}: not readable ({error}). Export it again.") from error
            if inside.shape != (height, width):
                raise ValueError(
                    f"{path}: is {inside.shape[1]}x{inside.shape[0]} (width x height), its image "
                    f"{width}x{height} when shown. Use the image that was annotated."
                )
            mask[inside] = value
        return mask
