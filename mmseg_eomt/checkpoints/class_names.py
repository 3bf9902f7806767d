"""Class names for files that have none: of a known dataset, or of the user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Name on the command line -> mmseg's dataset, whose METAINFO has names and colours.
KNOWN = {
    "ade20k": "ADE20KDataset",
    "cityscapes": "CityscapesDataset",
    "coco_stuff": "COCOStuffDataset",
}


@dataclass(frozen=True)
class ClassNames:
    """Names of classes in the order of the class head.

    Attributes:
        names: One per class.
        ids: The id that predictions carry for each.
        palette: RGB colours; None where none are given.
        source: Where they are from, for errors.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    source: str = "the file"


def numbered(count: int) -> ClassNames:
    """'class 0', 'class 1', ..."""
    return ClassNames(tuple(f"class {i}" for i in range(count)), tuple(range(count)))


def load_classes(source: str) -> ClassNames:
    """Class names that a user chose.

    Args:
        source: 'ade20k', 'cityscapes', 'coco_stuff'; or a file: one name a line, or YAML or JSON
            with a list of names or ``{id: name}``, also under the key 'classes' as in data.yaml.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no names.
    """
    if source in KNOWN:
        import mmseg.datasets

        meta: Mapping[str, Any] = getattr(mmseg.datasets, KNOWN[source]).METAINFO
        return ClassNames(
            names=tuple(meta["classes"]),
            ids=tuple(range(len(meta["classes"]))),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in meta["palette"]),
            source=source,
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"classes: {source!r} is neither {', '.join(KNOWN)} nor a file with class names."
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a list of class names ({error}).") from error
    if isinstance(content, Mapping):
        content = content.get("classes", content)
    if not isinstance(content, (Mapping, list)):
        content = [line.strip() for line in text.splitlines() if line.strip()]
    return names_of(content, str(path))


def names_of(content: Any, source: str) -> ClassNames:
    """Names from a list, or from a mapping of ids to names (or to ``{name: ...}``).

    Raises:
        ValueError: If it is neither, or an id or a name is none.
    """
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source}: classes are {content!r:.80}; expected names by id.")
    ids, names = [], []
    for key, value in content.items():
        name = value.get("name") if isinstance(value, Mapping) else value
        # JSON has text keys only.
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            raise ValueError(
                f"{source}: class {key!r}: {value!r:.80} is no pair of an id and a name."
            )
        ids.append(number)
        names.append(name)
    return ClassNames(tuple(names), tuple(ids), source=source)
