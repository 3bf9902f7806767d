"""What a user writes about a folder dataset, read, checked and in one typed form.

    train: {images: train/images, masks: train/masks}      # or a list of such pairs
    val:   {images: val/images,   masks: "val/masks/{stem}_label.png"}
    test:  {images: test/images,  masks: test/masks}       # optional
    classes:
      0: background
      1: {name: vehicle, labels: [1, 7, 9]}                # several mask values, one class
      2: {name: road, labels: [[128, 64, 128]]}            # colours of an RGB mask
    ignore_classes: [0]                                    # optional
    ignore_index: 255                                      # optional, one value or a list
    unknown_values: error                                  # or 'ignore': they are unlabelled
    on_error: raise                                        # or 'skip': bad files are passed over
    max_skipped: 0.01                                      # 'skip' ends the run above this share
    palette: [[0, 0, 0], [200, 30, 30], [0, 0, 255]]       # optional, in ascending class id

``ignore_index`` holds mask values (colours, too: ``[[0, 0, 0]]``) that mean "unlabelled"; it is
255 if it is not given, and nothing where classes have colours. `data_folders` says how images and
masks are paired, `images.reading` how they are read, `skipping` what ``on_error: skip`` does.

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

from mmseg_eomt.datasets.data_classes import ClassEntry, Color, parse_classes, parse_ignore_index
from mmseg_eomt.datasets.file_pairs import ImageMaskFolders, check_folders, parse_split
from mmseg_eomt.datasets.label_table import IGNORED, LabelTable

SPLITS = ("train", "val", "test")
UNKNOWN_VALUES = ("error", "ignore")
ON_ERROR = ("raise", "skip")
DEFAULT_MAX_SKIPPED = 0.01
_KEYS = (
    *SPLITS,
    "classes",
    "ignore_classes",
    "ignore_index",
    "unknown_values",
    "on_error",
    "max_skipped",
    "palette",
)


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
        ignore_colors (tuple): Colours of RGB masks that mean "unlabelled". Defaults to ().
        unknown_values (str): ``'error'`` or ``'ignore'``. Defaults to ``'error'``.
        on_error (str): ``'raise'`` or ``'skip'``. Defaults to ``'raise'``.
        max_skipped (float): Largest share of a split that ``'skip'`` passes over. Defaults to
            0.01.
    """

    source: str
    splits: Mapping[str, tuple[ImageMaskFolders, ...]]
    entries: tuple[ClassEntry, ...]
    ignore_index: tuple[int, ...]
    ignore_colors: tuple[Color, ...] = ()
    unknown_values: str = UNKNOWN_VALUES[0]
    on_error: str = ON_ERROR[0]
    max_skipped: float = DEFAULT_MAX_SKIPPED

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
        mapping: dict[int, int] = {}
        colors: dict[Color, int] = {}
        for entry in self.entries:
            label = internal.get(entry.id, IGNORED)
            mapping.update(dict.fromkeys(entry.labels, label))
            colors.update(dict.fromkeys(entry.mask_colors, label))
        mapping.update(dict.fromkeys(self.ignore_index, IGNORED))
        if colors:
            colors.update(dict.fromkeys(self.ignore_colors, IGNORED))
        return LabelTable(
            mapping, colors=colors, unknown_values=self.unknown_values, source=self.source
        )

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
        content: dict[str, Any] = {
            split: [pair.as_dict() for pair in pairs] for split, pairs in self.splits.items()
        }
        content.update(
            classes={
                e.id: {"name": e.name, "labels": [*e.labels, *map(list, e.mask_colors)]}
                for e in self.entries
            },
            ignore_classes=[e.id for e in self.entries if e.ignored],
            ignore_index=[*self.ignore_index, *map(list, self.ignore_colors)],
            palette=[list(e.color) for e in self.entries],
        )
        # Defaults are left out, so that the configs of older runs stay the same.
        for key, default in (
            ("unknown_values", UNKNOWN_VALUES[0]),
            ("on_error", ON_ERROR[0]),
            ("max_skipped", DEFAULT_MAX_SKIPPED),
        ):
            if getattr(self, key) != default:
                content[key] = getattr(self, key)
        return content


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
        name, base, content = str(path), path.resolve().parent, read_data_file(path, _KEYS)
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{name}: unknown key {', '.join(map(repr, unknown))}; allowed are {', '.join(_KEYS)}. "
            "Correct or remove it."
        )
    splits = {
        split: parse_split(content[split], f"{name}: {split}", base)
        for split in SPLITS
        if content.get(split)
    }
    if not splits:
        raise ValueError(
            f"{name}: none of the splits {', '.join(SPLITS)} is given. Add, for example, "
            "'train: {images: FOLDER, masks: FOLDER}'."
        )
    check_folders(splits if check_splits is None else check_splits, splits, name)
    entries = parse_classes(content, name)
    ignore_index, ignore_colors = parse_ignore_index(content, entries, name)
    return DataDescription(
        source=name,
        splits=splits,
        entries=entries,
        ignore_index=ignore_index,
        ignore_colors=ignore_colors,
        unknown_values=_choice(content, "unknown_values", UNKNOWN_VALUES, name),
        on_error=_choice(content, "on_error", ON_ERROR, name),
        max_skipped=_share(content.get("max_skipped", DEFAULT_MAX_SKIPPED), name),
    )


def _choice(content: Mapping[str, Any], key: str, allowed: Sequence[str], name: str) -> str:
    value = content.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(
            f"{name}: {key}: found {value!r}; allowed are {' and '.join(map(repr, allowed))}."
        )
    return str(value)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(
            f"{name}: max_skipped: found {value!r}; give a share above 0 and below 1, such as "
            f"{DEFAULT_MAX_SKIPPED} for 1 %."
        )
    return float(value)


def read_data_file(path: Path, keys: Sequence[str]) -> Mapping[str, Any]:
    """Reads a mapping.

    Args:
        path (Path): A YAML file, or a JSON file if it ends in ``.json``.
        keys (Sequence[str]): The keys that are allowed, named if it holds no mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not readable, gives a key twice or holds no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file. Give the path of a YAML or JSON file.")
    try:
        # utf-8-sig: Windows editors put a mark in front.
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_no_duplicate_keys)
        else:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable as YAML or JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path}: holds {type(content).__name__}, not a mapping with the keys "
            f"{', '.join(keys)}."
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
