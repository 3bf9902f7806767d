"""All that lies in a checkpoint of any program: tensors, what stands beside them, configuration."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mmseg_eomt.checkpoints.inert import holds_objects, read_past_objects
from mmseg_eomt.checkpoints.lightly import KIND, SETTINGS, WEIGHTS, is_lightly_content
from mmseg_eomt.checkpoints.sources import (
    check_start,
    find_weights,
    is_index,
    read_metadata,
    read_torch,
    read_weights,
    tensors_of,
)

_MAX_JSON = 64 << 20  # bytes


@dataclass(frozen=True)
class SourceFile:
    """One checkpoint.

    Attributes:
        path: The file, or the one in the folder that was given.
        weights: Tensors by name, free of containers and wrappers.
        content: All of a PyTorch file; None for others.
        metadata: Texts in the header of a safetensors file.
        config: ``config.json`` of the folder; None where a file was given, or there is none.
        processor: ``preprocessor_config.json``, likewise.
    """

    path: Path
    weights: dict[str, Tensor]
    content: Any = None
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None


def read_source(path: str | Path) -> SourceFile:
    """Read a file or folder without executing anything in it.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If it is damaged, or only code could read it.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else None
    config = processor = None
    if folder is not None:
        config = _read_json(folder / "config.json")
        processor = _read_json(folder / "preprocessor_config.json")
    file = find_weights(path)
    content = None
    metadata: dict[str, str] = {}
    if is_index(file):
        weights = read_weights(file)
    elif check_start(file)[8:9] == b"{":
        weights, metadata = read_weights(file), read_metadata(file)
    else:
        content = _read_torch(file)
        lightly = isinstance(content, dict) and isinstance(content.get("train_model"), dict)
        weights = tensors_of(content["train_model"] if lightly else content, file)
    if not weights:
        raise ValueError(f"{str(file)!r} holds no tensors.")
    return SourceFile(file, weights, content, metadata, config, processor)


def _read_torch(path: Path) -> Any:
    """Plain content; of LightlyTrain's training checkpoints what is plain in them."""
    try:
        return read_torch(path)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        try:
            content = read_past_objects(path)
        except ValueError:
            raise error from error.__cause__
        if not is_lightly_content(content):
            raise
        content = {key: content.get(key) for key in (KIND, SETTINGS, WEIGHTS)}
        if holds_objects(content):
            raise ValueError(
                f"{str(path)!r}: a training checkpoint of LightlyTrain whose settings hold objects "
                "that only code could read. Convert exported_models/exported_last.pt (or "
                "exported_best.pt) of the same run, which holds the same weights."
            ) from error
        return content


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are too many for a configuration.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is a {type(content).__name__}, no configuration.")
    return content
