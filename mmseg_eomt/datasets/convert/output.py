"""Writing a folder dataset as a whole or not at all.

Everything is built in a hidden folder beside the result, which takes its name at the end. The
originals are read, linked to or copied, never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmseg_eomt.datasets.convert.annotations import images_by_stem
from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.images.reading import image_size

MARK = "# Made by tools/convert_dataset.py; with --force it may be written over.\n"
IGNORE_VALUE = 255

T = TypeVar("T")


class Sample(NamedTuple):
    """An image and how its mask comes about.

    Attributes:
        image (Path): The image.
        stem (str): Path below the folder of images, without suffix; names the mask.
        draw (Callable): Makes the mask ``uint8 [H, W]`` for a height and a width.
        origin (str): Where the annotation was found, named in errors.
    """

    image: Path
    stem: str
    draw: Callable[[int, int], NDArray[np.uint8]]
    origin: str


class Split(NamedTuple):
    """The samples of a split, the folder of its images and where its annotations are."""

    images: Path
    samples: Sequence[Sample]
    annotations: Path


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        data (Path): The data file.
        counts (dict): Samples by split.
        classes (dict): Names by class id.
        notes (list): What a user should know.
    """

    data: Path
    counts: dict[str, int]
    classes: dict[int, str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        lines = [f"{self.data}: {counts}; {len(self.classes)} classes."]
        return "\n".join(lines + [f"Note: {note}" for note in self.notes])


def write_dataset(
    out: Path,
    splits: Mapping[str, Split],
    *,
    classes: Mapping[int, str],
    colors: Sequence[Sequence[int]] | None = None,
    ignore_classes: Sequence[str] = (),
    force: bool = False,
    copy_images: bool = False,
    notes: Sequence[str] = (),
) -> Report:
    """Draws and writes all masks, and ``data.yaml``.

    If the folder of images holds exactly the annotated ones, ``data.yaml`` names it. Otherwise
    ``OUT/SPLIT/images`` is made, with links to the annotated images, or copies.

    Args:
        out (Path): Folder to make.
        splits (Mapping): Samples by split.
        classes (Mapping): Names by class id, which is also the value in the masks.
        colors (Sequence, optional): RGB by class in ascending id. Defaults to None.
        ignore_classes (Sequence[str]): Names of classes to be left unlabelled. Defaults to ().
        force (bool): Replace a folder that was made by this tool. Defaults to False.
        copy_images (bool): Copy the images in any case. Defaults to False.
        notes (Sequence[str]): For the report. Defaults to ().

    Raises:
        FileExistsError: If ``out`` exists and may not be replaced.
        ValueError: If an annotation does not fit its image, or a class is unknown.
    """
    ignored = _ids_of(ignore_classes, classes)
    report = Report(out / "data.yaml", {}, dict(classes), list(notes))
    sources = [path for split in splits.values() for path in (split.images, split.annotations)]
    with new_folder(out, force=force, sources=sources) as new:
        folders = {}
        for name, split in splits.items():
            _check_stems(split.samples)
            for sample in progress(split.samples, f"{name}: masks"):
                _write_mask(new / name / "masks" / f"{sample.stem}.png", _draw(sample))
            report.counts[name] = len(split.samples)
            images = _images(new, name, split, copy_images, report.notes)
            folders[name] = {"images": images, "masks": f"{name}/masks"}
        write_data_file(
            new / "data.yaml",
            folders,
            classes={i: {"name": text} for i, text in classes.items()},
            ignore_classes=ignored,
            ignore_index=[IGNORE_VALUE],
            palette=colors,
        )
    return report


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool, sources: Sequence[Path]) -> Iterator[Path]:
    """A hidden folder beside ``out`` that takes its name if the block ends well.

    Raises:
        FileExistsError: If ``out`` exists, unless it is empty, or ours and ``force`` is given.
        ValueError: If ``out`` is one of the ``sources``, or lies inside or around one.
    """
    out = Path(os.path.abspath(out))
    for source in (path.resolve() for path in sources):
        if out.resolve() == source or source in out.resolve().parents:
            raise ValueError(f"{out}: lies in {source}, which is read. Give another --out.")
        if out.resolve() in source.parents:
            raise ValueError(f"{out}: holds {source}, which is read. Give another --out.")
    _check_free(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.{os.getpid()}.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        load_data(staging / "data.yaml")  # what was written can be read
        if out.exists() and any(out.iterdir()):
            old = out.parent / f".{out.name}.{os.getpid()}.old"
            os.rename(out, old)
            os.rename(staging, out)
            shutil.rmtree(old)
        else:
            os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_data_file(
    path: Path,
    folders: Mapping[str, Mapping[str, str]],
    *,
    classes: Mapping[int, Mapping[str, Any]],
    ignore_classes: Sequence[int] = (),
    ignore_index: Sequence[int] = (IGNORE_VALUE,),
    palette: Sequence[Sequence[int]] | None = None,
) -> None:
    """Writes what `load_data` reads. JSON's strings, lists and maps are YAML's, too."""
    lines = [f"{name}: {json.dumps(dict(pair))}" for name, pair in folders.items()]
    lines.append("classes:")
    for class_id, entry in sorted(classes.items()):
        plain = set(entry) == {"name"}
        lines.append(f"  {class_id}: {json.dumps(entry['name'] if plain else dict(entry))}")
    if ignore_classes:
        lines.append(f"ignore_classes: {json.dumps(list(ignore_classes))}")
    lines.append(f"ignore_index: {json.dumps(list(ignore_index))}")
    # Colours given twice are no palette; the dataset then chooses its own.
    if palette is not None and len({tuple(color) for color in palette}) == len(classes):
        lines += ["palette:"] + [f"  - {json.dumps([int(c) for c in color])}" for color in palette]
    path.write_text(MARK + "\n".join(lines) + "\n", encoding="utf-8")


def link(source: Path, target: Path, *, copy: bool = False) -> None:
    """Makes ``target`` a symbolic link to ``source``, or a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, target)
        return
    try:
        target.symlink_to(source.resolve())
    except OSError as error:
        raise OSError(
            f"{target}: no link could be made ({error}). Use --copy-images to copy the files."
        ) from error


def relative(path: Path, folder: Path) -> str:
    """``path`` seen from ``folder``; absolute where there is no way (another drive)."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def progress(items: Iterable[T], text: str, *, total: int | None = None) -> Iterable[T]:
    """``items`` with a bar on a terminal's stderr."""
    console = Console(stderr=True)
    return track(
        items, description=text, total=total, console=console, disable=not console.is_terminal
    )


def _check_free(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    own = out / "data.yaml"
    ours = own.is_file() and own.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    if not ours:
        raise FileExistsError(
            f"{out}: exists and was not made by this tool. Give the path of a new folder."
        )
    if not force:
        raise FileExistsError(f"{out}: exists. Give another --out, or --force to replace it.")


def _check_stems(samples: Sequence[Sample]) -> None:
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(sample.stem, sample)
        if other is not sample:
            raise ValueError(
                f"{sample.origin}: {sample.image} and {other.image} would have the same mask "
                f"{sample.stem}.png. Rename or remove one."
            )


def _draw(sample: Sample) -> NDArray[np.uint8]:
    width, height = image_size(str(sample.image))
    try:
        return sample.draw(height, width)
    except ValueError as error:
        raise ValueError(f"{sample.origin}: {error}") from error


def _write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def _images(new: Path, name: str, split: Split, copy: bool, notes: list[str]) -> str:
    """The folder of images for the data file, made where the given one does not do."""
    annotated = {sample.stem for sample in split.samples}
    found = {stem for stem, paths in images_by_stem(split.images).items() for _ in paths}
    if not copy and found == annotated:
        return relative(split.images, new)
    if found != annotated:
        notes.append(
            f"{name}: {len(found - annotated)} of {len(found)} images in {split.images} have no "
            "annotation and are left out."
        )
    for sample in split.samples:
        target = new / name / "images" / f"{sample.stem}{sample.image.suffix}"
        link(sample.image, target, copy=copy)
    return f"{name}/images"


def _ids_of(names: Sequence[str], classes: Mapping[int, str]) -> list[int]:
    ids = {name: class_id for class_id, name in classes.items()}
    for name in names:
        if name not in ids:
            raise ValueError(
                f"--ignore-classes: there is no class {name!r}; classes are {', '.join(ids)}."
            )
    return [ids[name] for name in names]
