"""A folder with one subfolder of images for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dinov2_pretraining.data.file_list import find_images

_HELD_OUT = 5  # every fifth image of a class


@dataclass(frozen=True)
class LabelledFiles:
    """Files and their classes.

    Attributes:
        paths (list[str]): Files.
        labels (list[int]): For each its place in ``classes``.
        classes (list[str]): Names of the classes.
    """

    paths: list[str]
    labels: list[int]
    classes: list[str]


def read_classes(folder: str | Path) -> LabelledFiles:
    """The images of each subfolder, nested ones included; classes in order of their names.

    Raises:
        FileNotFoundError: If there is no such folder, or a class has no image.
        ValueError: If there are fewer than two classes.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: there is no such folder. Correct the path.")
    classes = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
    )
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: {len(classes)} subfolders; one for each class is needed, at least two, "
            "each with its images."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = find_images(os.path.join(folder, name))
        paths += found
        labels += [label] * len(found)
    return LabelledFiles(paths, labels, classes)


def split_classes(files: LabelledFiles) -> tuple[LabelledFiles, LabelledFiles]:
    """Every fifth image of each class for testing (at least one), the others to learn from.

    Raises:
        ValueError: If a class has a single image.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for label, name in enumerate(files.classes):
        own = [index for index, other in enumerate(files.labels) if other == label]
        if len(own) < 2:
            raise ValueError(
                f"{files.paths[own[0]]} is the only image of the class {name!r}: give a class at "
                "least two, or test images in a folder of their own (val_folder)."
            )
        held_out = set(own[_HELD_OUT - 1 :: _HELD_OUT] or own[-1:])
        for index in own:
            parts[index in held_out].append(index)
    learn, test = (
        LabelledFiles(
            [files.paths[index] for index in part],
            [files.labels[index] for index in part],
            files.classes,
        )
        for part in parts
    )
    return learn, test
