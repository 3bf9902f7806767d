"""What a user writes about a folder dataset, checked and in one typed form.

    train: {images: train/images, masks: train/masks}      # or a list of such pairs
    val:   {images: val/images,   masks: val/masks}
    test:  {images: test/images,  masks: test/masks}       # optional
    classes:
      0: background
      1: {name: vehicle, labels: [1, 7, 9]}                # several mask values, one class
    ignore_classes: [0]                                    # optional
    ignore_index: 255                                      # optional, one value or a list
    palette: [[0, 0, 0], [200, 30, 30]]                    # optional, in ascending class id

Paths are relative to the folder of the YAML or JSON file, or to the working directory if the
description is a dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmseg_eomt.datasets.label_table import IGNORED, MAX_CLASSES, MAX_MASK_VALUE, LabelTable
from mmseg_eomt.datasets.palette import default_palette

SPLITS = ("train", "val", "test")
_KEYS = (*SPLITS, "classes", "ignore_classes", "ignore_index", "palette")


@dataclass(frozen=True)
class ImageMaskFolders:
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class ClassEntry:
    """One class as the user wrote it.

    Attributes:
        id (int): The user's class id, which predictions carry.
        name (str): Name of the class.
        labels (tuple[int]): Mask values that belong to the class.
        color (tuple[int]): RGB colour in pictures.
        ignored (bool): Whether its pixels are treated as unlabelled.
    """

    id: int
    name: str
    labels: tuple[int, ...]
    color: tuple[int, int, int]
    ignored: bool


@dataclass(frozen=True)
class DataDescription:
    """A checked folder dataset. Made by `load_data`.

    Inside the model a class is its position among the classes that are not ignored, in
    ascending order of id (`classes`, `class_ids` and `palette` are in that order).

    Attributes:
        source (str): The file it came from, or ``'data'`` for a dict; named in errors.
        splits (dict): Folders of each split that was given.
        entries (tuple[ClassEntry]): All classes, ignored ones included, in ascending id.
        ignore_index (tuple[int]): Mask values that mean "unlabelled".
    """

    source: str
    splits: Mapping[str, tuple[ImageMaskFolders, ...]]
    entries: tuple[ClassEntry, ...]
    ignore_index: tuple[int, ...]

    @property
    def kept(self) -> tuple[ClassEntry, ...]:
        """The classes that are not ignored."""
        return tuple(entry for entry in self.entries if not entry.ignored)

    @property
    def classes(self) -> list[str]:
        """Names by internal id."""
        return [entry.name for entry in self.kept]

    @property
    def class_ids(self) -> list[int]:
        """The user's class ids by internal id: what predictions carry."""
        return [entry.id for entry in self.kept]

    @property
    def palette(self) -> list[list[int]]:
        """RGB colours by internal id."""
        return [list(entry.color) for entry in self.kept]

    @property
    def num_classes(self) -> int:
        """Number of classes that are not ignored."""
        return len(self.kept)

    def label_table(self) -> LabelTable:
        """The map from mask values to internal ids."""
        internal = {entry.id: position for position, entry in enumerate(self.kept)}
        mapping = {
            label: internal.get(entry.id, IGNORED)
            for entry in self.entries
            for label in entry.labels
        }
        mapping.update(dict.fromkeys(self.ignore_index, IGNORED))
        return LabelTable(mapping, source=self.source)

    def folders(self, split: str) -> tuple[ImageMaskFolders, ...]:
        """The folders of a split; a `ValueError` if it was not given."""
        if split not in self.splits:
            raise ValueError(
                f"{self.source}: there is no split {split!r}; it has {', '.join(self.splits)}. "
                f"Add '{split}: {{images: FOLDER, masks: FOLDER}}'."
            )
        return self.splits[split]

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, fit for a config; `load_data` reads it back."""
        splits: dict[str, Any] = {
            split: [{"images": str(pair.images), "masks": str(pair.masks)} for pair in pairs]
            for split, pairs in self.splits.items()
        }
        return dict(
            **splits,
            classes={e.id: {"name": e.name, "labels": list(e.labels)} for e in self.entries},
            ignore_classes=[e.id for e in self.entries if e.ignored],
            ignore_index=list(self.ignore_index),
            palette=[list(e.color) for e in self.entries],
        )


def load_data(
    source: Mapping[str, Any] | str | Path | DataDescription,
    *,
    check_splits: Sequence[str] | None = None,
) -> DataDescription:
    """Reads and checks the description of a folder dataset.

    Args:
        source (dict | str | Path): A dict, or the path of a YAML or JSON file.
        check_splits (Sequence[str], optional): Splits whose folders must exist. Defaults to
            None: all splits that are given.

    Returns:
        DataDescription: The description, with absolute paths.

    Raises:
        FileNotFoundError: If the file or one of the folders does not exist.
        ValueError: If anything in it is wrong. The message names the file, the value found,
            the values allowed and the mend.
    """
    if isinstance(source, DataDescription):
        return source
    if isinstance(source, Mapping):
        name, base, content = "data", Path.cwd(), source
    else:
        path = Path(source)
        name, base, content = str(path), path.resolve().parent, _read(path)
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{name}: unknown key {', '.join(map(repr, unknown))}; allowed are {', '.join(_KEYS)}. "
            "Correct or remove it."
        )
    splits = {s: _split(content[s], f"{name}: {s}", base) for s in SPLITS if content.get(s)}
    if not splits:
        raise ValueError(
            f"{name}: none of the splits {', '.join(SPLITS)} is given. Add, for example, "
            "'train: {images: FOLDER, masks: FOLDER}'."
        )
    _check_folders(splits if check_splits is None else check_splits, splits, name)
    entries = _classes(content, name)
    ignore_index = _ignore_index(content, entries, name)
    return DataDescription(source=name, splits=splits, entries=entries, ignore_index=ignore_index)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file. Give the path of a YAML or JSON file.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_no_duplicate_keys)
        else:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable as YAML or JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path}: holds {type(content).__name__}, not a mapping with the keys "
            f"{', '.join(_KEYS)}."
        )
    return content


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"key {sorted(twice)} is given more than once")
    return dict(pairs)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML would keep the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given more than once{key_node.start_mark}")
            seen.add(key)
        result: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result


def _split(value: Any, where: str, base: Path) -> tuple[ImageMaskFolders, ...]:
    form = "write {images: FOLDER, masks: FOLDER} or a list of such pairs"
    pairs = list(value) if _is_list(value) else [value]
    result = []
    for pair in pairs:
        if not isinstance(pair, Mapping) or set(pair) != {"images", "masks"}:
            raise ValueError(f"{where}: found {_plain(pair)!r}; {form}.")
        for key, folder in pair.items():
            if not isinstance(folder, (str, Path)) or not str(folder):
                raise ValueError(f"{where}.{key}: {folder!r} is not the path of a folder; {form}.")
        result.append(
            ImageMaskFolders(images=base / str(pair["images"]), masks=base / str(pair["masks"]))
        )
    return tuple(result)


def _check_folders(
    wanted: Sequence[str] | Mapping[str, Any],
    splits: Mapping[str, tuple[ImageMaskFolders, ...]],
    name: str,
) -> None:
    for split in wanted:
        for pair in splits.get(split, ()):
            for key, folder in (("images", pair.images), ("masks", pair.masks)):
                if not folder.is_dir():
                    found = "is a file, not a folder" if folder.exists() else "does not exist"
                    raise FileNotFoundError(
                        f"{name}: {split}.{key}: {folder} {found}. Correct the path; relative "
                        "paths count from the folder of the data file, or from the working "
                        "directory for a dict."
                    )


def _classes(content: Mapping[str, Any], name: str) -> tuple[ClassEntry, ...]:
    given = content.get("classes")
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"{name}: classes: found {_plain(given)!r}; give at least one class as 'ID: NAME' or "
            "'ID: {name: NAME, labels: [MASK VALUES]}'."
        )
    parsed: dict[int, tuple[str, tuple[int, ...]]] = {}
    for key, value in given.items():
        class_id = _whole_number(key, f"{name}: classes", "a class id")
        if class_id in parsed:
            raise ValueError(f"{name}: classes: id {class_id} is given more than once.")
        parsed[class_id] = _class_entry(class_id, value, f"{name}: classes.{class_id}")
    _unique(((entry[0], i) for i, entry in parsed.items()), f"{name}: classes", "name")
    labels = ((label, i) for i, entry in parsed.items() for label in entry[1])
    _unique(labels, f"{name}: classes", "mask value")

    ignored = _id_list(content.get("ignore_classes"), f"{name}: ignore_classes")
    missing = [i for i in ignored if i not in parsed]
    if missing:
        raise ValueError(
            f"{name}: ignore_classes: {missing} are no class ids; classes has "
            f"{_shorten(sorted(parsed))}. Remove them or add the classes."
        )
    kept = len(parsed) - len(set(ignored))
    if not 1 <= kept <= MAX_CLASSES:
        raise ValueError(
            f"{name}: {kept} of {len(parsed)} classes are left after ignore_classes; 1 to "
            f"{MAX_CLASSES} can be trained."
        )
    ids = sorted(parsed)
    colors = _palette(content.get("palette"), len(ids), f"{name}: palette")
    return tuple(
        ClassEntry(i, *parsed[i], color=color, ignored=i in ignored)
        for i, color in zip(ids, colors, strict=True)
    )


def _class_entry(class_id: int, value: Any, where: str) -> tuple[str, tuple[int, ...]]:
    labels: Any = [class_id]
    name = value
    if isinstance(value, Mapping):
        unknown = sorted(set(map(str, value)) - {"name", "labels"})
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown}; allowed are name and labels.")
        name, labels = value.get("name"), value.get("labels", labels)
    if not isinstance(name, str) or not name.strip():
        # YAML reads a bare `no`, `on` or `3` as a boolean or a number.
        raise ValueError(f"{where}: the name is {name!r}, not text; write it in quotes.")
    if not _is_list(labels) or not labels:
        raise ValueError(f"{where}.labels: found {labels!r}; give a list of mask values.")
    values = tuple(_whole_number(label, f"{where}.labels", "a mask value") for label in labels)
    return name.strip(), values


def _ignore_index(
    content: Mapping[str, Any], entries: Sequence[ClassEntry], name: str
) -> tuple[int, ...]:
    given = content.get("ignore_index", 255)
    values = _id_list(
        given if _is_list(given) or given is None else [given], f"{name}: ignore_index"
    )
    for entry in entries:
        both = [value for value in values if value in entry.labels]
        if both:
            raise ValueError(
                f"{name}: ignore_index: {both} is also a mask value of class {entry.id} "
                f"({entry.name}). Give the values that mean 'unlabelled' (default 255), or "
                "'ignore_index: []' if there are none."
            )
    return tuple(dict.fromkeys(values))


def _palette(given: Any, count: int, where: str) -> list[tuple[int, int, int]]:
    if given is None:
        return default_palette(count)
    form = f"give one [R, G, B] of 0 to 255 for each of the {count} classes in ascending id"
    if not _is_list(given) or len(given) != count:
        length = f"{len(given)} entries" if _is_list(given) else repr(_plain(given))
        raise ValueError(f"{where}: found {length}; {form}.")
    colors = []
    for color in given:
        numbers = list(color) if _is_list(color) else []
        if len(numbers) != 3 or any(type(c) is not int or not 0 <= c <= 255 for c in numbers):
            raise ValueError(f"{where}: {_plain(color)!r} is no colour; {form}.")
        if tuple(numbers) in colors:
            raise ValueError(f"{where}: {numbers} is given to two classes; {form}, all distinct.")
        colors.append((numbers[0], numbers[1], numbers[2]))
    return colors


def _id_list(value: Any, where: str) -> list[int]:
    if value is None:
        return []
    if not _is_list(value):
        raise ValueError(f"{where}: found {_plain(value)!r}; give a list of whole numbers.")
    return [_whole_number(item, where, "an entry") for item in value]


def _whole_number(value: Any, where: str, what: str) -> int:
    # JSON and some YAML writers turn the keys of a mapping into strings.
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if type(number) is not int or not 0 <= number <= MAX_MASK_VALUE:
        raise ValueError(
            f"{where}: {_plain(value)!r} is not {what}; allowed are whole numbers from 0 to "
            f"{MAX_MASK_VALUE}."
        )
    return number


def _unique(pairs: Any, where: str, what: str) -> None:
    owner: dict[Any, int] = {}
    for value, class_id in pairs:
        if value in owner:
            raise ValueError(
                f"{where}: {what} {value!r} belongs to the classes {owner[value]} and {class_id}. "
                "Each may belong to one class only."
            )
        owner[value] = class_id


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _shorten(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:20]))
    return shown + (f", ... ({len(values)} in all)" if len(values) > 20 else "")
