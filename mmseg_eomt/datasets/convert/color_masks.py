"""Masks painted in colours, by a colour table, as class ids."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.datasets.convert.annotations import files_by_stem, image_of_stem, images_by_stem
from mmseg_eomt.datasets.convert.output import IGNORE_VALUE, Report, Sample, Split, write_dataset
from mmseg_eomt.datasets.label_table import MAX_CLASSES

_FORMS = (
    "a labelmap.txt of CVAT (NAME:R,G,B::), a text file with lines 'R G B NAME', a CSV with the "
    "columns name, r, g, b, or YAML or JSON with NAME: [R, G, B]"
)

Color = tuple[int, int, int]


def read_colors(path: Path) -> dict[str, Color]:
    """RGB colours by class name, in the order of the file.

    Args:
        path (Path): A file in one of the forms that the error message lists.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is in none of the forms, or a name or colour is given twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give {_FORMS}.")
    text = path.read_text(encoding="utf-8-sig")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        rows: Iterable[tuple[Any, Sequence[Any]]] = _mapping(text, path)
    elif suffix == ".csv":
        rows = _csv(text, path)
    else:
        lines = [line.strip() for line in text.splitlines()]
        rows = [_line(line, path) for line in lines if line and not line.startswith("#")]
    return _checked(rows, path)


def _mapping(text: str, path: Path) -> list[tuple[Any, Sequence[Any]]]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}; give {_FORMS}.")
    return list(content.items())


def _csv(text: str, path: Path) -> list[tuple[Any, Sequence[Any]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    names = {str(name).strip().lower(): name for name in reader.fieldnames or []}
    if not {"name", "r", "g", "b"} <= set(names):
        raise ValueError(f"{path}: the columns are {', '.join(names)}; give name, r, g, b.")
    return [(row[names["name"]], [row[names[c]] for c in "rgb"]) for row in reader]


def _line(line: str, path: Path) -> tuple[Any, Sequence[Any]]:
    if ":" in line:
        name, color = line.split(":")[:2]
        return name, color.split(",")
    parts = line.split(None, 3)
    if len(parts) != 4:
        raise ValueError(f"{path}: the line {line!r} is not 'R G B NAME'. Give {_FORMS}.")
    return parts[3], parts[:3]


def _checked(rows: Iterable[tuple[Any, Sequence[Any]]], path: Path) -> dict[str, Color]:
    result: dict[str, Color] = {}
    for name, numbers in rows:
        where = f"{path}: {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: is no name. Write names in quotes.")
        try:
            color = tuple(int(str(number).strip()) for number in numbers)
        except (TypeError, ValueError):
            color = ()
        if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
            raise ValueError(f"{where}: {numbers!r} is no colour; give three numbers of 0 to 255.")
        if name.strip() in result:
            raise ValueError(f"{where}: is given twice. Names are unique.")
        if color in result.values():
            other = next(n for n, c in result.items() if c == color)
            raise ValueError(f"{where}: has the colour of {other!r}. Colours are unique.")
        result[name.strip()] = (color[0], color[1], color[2])
    if not 1 <= len(result) <= MAX_CLASSES:
        raise ValueError(f"{path}: {len(result)} classes; 1 to {MAX_CLASSES} can be converted.")
    return result


# Formats that keep every pixel; JPEG and WebP would smear the colours.
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".ppm")
_LOSSY = (".jpg", ".jpeg", ".webp")
_UNKNOWN = 254  # no class has it: at most 254 classes, numbered from 0


def convert_colors(
    splits: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    colors: Path,
    mask_suffix: str = "",
    unknown_colors: str = "error",
    ignore_classes: Sequence[str] = (),
    force: bool = False,
    copy_images: bool = False,
) -> Report:
    """Converts masks whose colours stand for classes.

    Classes are numbered from 0 in the order of the table. Palettes are resolved to their colours,
    an alpha channel is dropped.

    Args:
        splits (Mapping): Folder of colour masks and folder of images by split.
        out (Path): Folder to make.
        colors (Path): What `read_colors` reads.
        mask_suffix (str): What the masks' stems have behind those of the images, such as
            ``'_L'``. Defaults to ``''``.
        unknown_colors (str): ``'error'`` or ``'ignore'``: pixels of other colours are unlabelled.
            Defaults to ``'error'``.
        ignore_classes (Sequence[str]): See `write_dataset`. Defaults to ().
        force (bool): See `write_dataset`. Defaults to False.
        copy_images (bool): See `write_dataset`. Defaults to False.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a mask holds another colour, or a table or file is wrong.
    """
    if unknown_colors not in ("error", "ignore"):
        raise ValueError(f"unknown_colors is {unknown_colors!r}; allowed are error and ignore.")
    table = read_colors(colors)
    reader = _ColorTable(table, source=str(colors), strict=unknown_colors == "error")
    written = {
        name: Split(images, _samples(masks, images, mask_suffix, reader), masks)
        for name, (masks, images) in splits.items()
    }
    return write_dataset(
        out,
        written,
        classes=dict(enumerate(table)),
        colors=list(table.values()),
        ignore_classes=ignore_classes,
        force=force,
        copy_images=copy_images,
    )


def convert_cvat(
    splits: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    labelmap: Path | None = None,
    **options: Any,
) -> Report:
    """Converts CVAT's export "Segmentation mask": ``labelmap.txt`` and ``SegmentationClass``.

    Args:
        splits (Mapping): Unpacked export and folder of images by split.
        out (Path): Folder to make.
        labelmap (Path, optional): Defaults to None: ``labelmap.txt`` of the first export; those
            of the others must say the same.
        **options: As for `convert_colors`.
    """
    chosen = labelmap
    for export, _ in splits.values():
        own = export / "labelmap.txt"
        if labelmap is not None:
            continue
        if chosen is not None and read_colors(own) != read_colors(chosen):
            raise ValueError(
                f"{own}: differs from {chosen}. Give the table of both with --labelmap FILE."
            )
        chosen = chosen or own
    if chosen is None:
        raise ValueError("no split is given. Give at least --train EXPORT IMAGES.")
    masks = {
        name: (export / "SegmentationClass", images) for name, (export, images) in splits.items()
    }
    return convert_colors(masks, out, colors=chosen, **options)


class _ColorTable:
    """Colours to class ids by one look-up in a table of 2**24 entries."""

    def __init__(self, colors: Mapping[str, Color], *, source: str, strict: bool) -> None:
        self.source = source
        other = _UNKNOWN if strict else IGNORE_VALUE
        self._table = np.full(1 << 24, other, dtype=np.uint8)
        for class_id, (red, green, blue) in enumerate(colors.values()):
            self._table[red << 16 | green << 8 | blue] = class_id

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):
                    raise ValueError(f"it holds numbers (mode {file.mode}), not colours")
                rgb = np.asarray(file.convert("RGB")).astype(np.uint32)
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(f"not readable as a colour mask ({error}). Export it again") from error
        packed = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        mask = np.take(self._table, packed)
        unknown = mask == _UNKNOWN
        if bool(unknown.any()):
            values, counts = np.unique(packed[unknown], return_counts=True)
            order = np.argsort(-counts, kind="stable")[:5]
            shown = ", ".join(
                f"{[int(values[i]) >> 16, int(values[i]) >> 8 & 255, int(values[i]) & 255]} "
                f"({counts[i]} pixels)"
                for i in order
            )
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            raise ValueError(
                f"unknown colour {shown}{more}. Add it to {self.source}, or leave such pixels "
                "unlabelled with --unknown-colors ignore"
            )
        return mask


class _Drawing:
    """The mask of one file."""

    def __init__(self, path: Path, reader: _ColorTable) -> None:
        self.path, self.reader = path, reader

    def __call__(self, height: int, width: int) -> NDArray[np.uint8]:
        mask = self.reader(self.path)
        if mask.shape != (height, width):
            raise ValueError(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} (width x height), its image is "
                f"{width}x{height} when shown. They must be equal: pair the right files"
            )
        return mask


def _samples(masks: Path, images: Path, suffix: str, reader: _ColorTable) -> list[Sample]:
    found = files_by_stem(masks, _SUFFIXES)
    lossy = files_by_stem(masks, _LOSSY)
    if not found:
        hint = " JPEG and WebP change colours and cannot be converted." if lossy else ""
        raise FileNotFoundError(
            f"{masks}: no masks; they end in {', '.join(_SUFFIXES)}.{hint} Correct the folder."
        )
    by_stem = images_by_stem(images)
    samples = []
    for stem, paths in found.items():
        for path in paths:
            if not stem.endswith(suffix):
                raise ValueError(
                    f"{path}: its stem does not end in {suffix!r}. Correct --mask-suffix."
                )
            name = stem.removesuffix(suffix)
            image = image_of_stem(by_stem, name, folder=images, origin=str(path))
            samples.append(Sample(image, name, _Drawing(path, reader), str(path)))
    return samples
