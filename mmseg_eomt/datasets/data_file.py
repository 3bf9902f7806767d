"""Reading a YAML or JSON file that describes data, without losing what is given twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


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
