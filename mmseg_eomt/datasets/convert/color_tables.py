"""Tables of class names and colours, in the forms that tools write."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

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
