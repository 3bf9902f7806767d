"""Reading what people annotated: images by stem, JSON files, and numbers for class names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg_eomt.datasets.label_table import MAX_CLASSES
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
