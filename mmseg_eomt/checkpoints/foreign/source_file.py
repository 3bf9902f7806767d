"""The one reader of files of other programs: tensors and what stands beside them, nothing run."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmseg_eomt.checkpoints.foreign.lightly import (
    KIND,
    SETTINGS,
    WEIGHTS,
    is_lightly_content,
)
from mmseg_eomt.checkpoints.torch_file import (
    check_archive,
    check_tensors,
    holds_objects,
    is_archive,
    read_past_objects,
)

# Where training programs put the weights inside a checkpoint.
CONTAINERS = ("state_dict", "model", "teacher", "model_state_dict", "module")
# What wrappers (DDP, torch.compile, EMA) put before each name.
WRAPPERS = ("module.", "_orig_mod.")
_MAX_JSON = 64 << 20  # bytes; the index of a model of 7 billion parameters has 0.1 MiB
# In a folder as transformers writes it, the first of these that is there is read.
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, a PyTorch file, an index of shards or a folder.

    The format is told by content, not by name. PyTorch files are read with ``weights_only=True``,
    so no code stored in them runs.

    Args:
        path (str | Path): A file; an ``*.index.json`` of shards; or a folder with one of
            ``model.safetensors``, ``pytorch_model.bin`` or their indices.

    Returns:
        dict[str, Tensor]: Names and tensors on the CPU, free of containers and wrappers.

    Raises:
        FileNotFoundError: If the file, or a shard, does not exist.
        ValueError: If it holds no weights, or more than weights.
    """
    path = find_weights(path)
    if is_index(path):
        return _read_shards(path)
    # safetensors: eight bytes with the length of the JSON header, then the header.
    if check_start(path)[8:9] == b"{":
        weights = _read_safetensors(path)
    else:
        weights = tensors_of(read_torch(path), path)
    if not weights:
        raise ValueError(f"{str(path)!r} holds no tensors.")
    return weights


def find_weights(path: str | Path) -> Path:
    """The file that holds the weights: ``path`` itself, or what lies in it if it is a folder.

    Raises:
        FileNotFoundError: If there is none, or a folder has several.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _file_in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weights file {str(path)!r}. Give the path of a .safetensors, .pth or "
            ".bin file, of a folder that holds one, or a URL."
        )
    return path


def is_index(path: Path) -> bool:
    """Whether the file is JSON that tells in which shards the tensors lie."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start.startswith(b"{") or path.stat().st_size > _MAX_JSON:
        return path.suffix == ".json"
    return path.suffix == ".json" or b'"weight_map"' in path.read_bytes()


def check_start(path: Path) -> bytes:
    """First bytes of a file of weights.

    Raises:
        ValueError: If the file is empty, a web page, or a pointer to the real one.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"The weights file {str(path)!r} is empty. Fetch it again.")
    if looks_like_page(head):
        raise ValueError(
            f"{str(path)!r} is a web page or text, not weights: it begins with {head[:40]!r}. "
            "A download that asks for a login or whose link has expired leaves such files; fetch "
            "it again with a valid link."
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{str(path)!r} is a Git LFS pointer, not the weights. Run `git lfs pull` in its "
            "repository, or download the file itself."
        )
    return head


def looks_like_page(head: bytes) -> bool:
    """Tells a web page, or a server's XML or JSON error, from weights by its first bytes."""
    start = head.lstrip().lower()
    return start.startswith((b"<!doctype", b"<html", b"<?xml", b"<error", b'{"'))


def _file_in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pth", ".bin"))
    if len(weights) == 1:
        return weights[0]
    raise FileNotFoundError(
        f"The folder {str(folder)!r} holds none of {', '.join(FOLDER_FILES)} and "
        f"{len(weights)} other weights files ({', '.join(p.name for p in weights) or 'none'}). "
        "Name the file itself."
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(index)!r} is no index of shards: it lacks a readable 'weight_map' ({error})."
        ) from error
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{str(index)!r} names a shard outside of its folder: {shard!r}.")
        weights.update(read_weights(index.parent / shard))
    missing = sorted(set(places) - set(weights))
    if missing:
        raise ValueError(
            f"The shards of {str(index)!r} lack {len(missing)} of its tensors: "
            f"{', '.join(missing[:8])}. Fetch them again."
        )
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return unwrapped(dict(load_file(path)))
    except SafetensorError as error:
        raise _cut_short(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Texts in the header of a safetensors file; {} for other files."""
    if check_start(path)[8:9] != b"{":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _cut_short(path, error) from error


def read_torch(path: Path) -> Any:
    """All that a PyTorch file holds, read with ``weights_only=True``.

    Raises:
        ValueError: If it cannot be read so, is damaged, or would unpack to more than it holds.
    """
    check_archive(path)
    try:
        with path.open("rb") as file:  # given a path, torch would go by its suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _asked_for(path)
        # torch's own words would advise to run the code.
        reason = f"it asks to run {asked}" if asked else "it is no pickle of tensors"
        raise ValueError(
            f"{str(path)!r} is no PyTorch file of plain weights: {reason}. Nothing but tensors is "
            "read, since a pickle can run code. Save its weights apart, for instance as "
            "safetensors, in the program that made it."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{str(path)!r} cannot be read as safetensors or PyTorch weights ({_first_line(error)})"
            ". It may be cut short; fetch it again."
        ) from error
    return content


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The table of names and tensors in what :func:`read_torch` gave, free of wrappers."""
    for _ in range(3):  # e.g. {'teacher': {'state_dict': ...}}
        inner = next((c for c in CONTAINERS if _has_tensors(content, c)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__}, not a table of names and tensors."
        )
    weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    check_tensors(weights, path)
    return unwrapped(weights)


def _asked_for(path: Path) -> str:
    """Names what a file wants to have called, found without calling it."""
    if not is_archive(path):
        return ""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it only adds to a message
        return ""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _cut_short(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{str(path)!r} is no complete safetensors file ({error}). Fetch it again.")


def _has_tensors(content: object, name: str) -> bool:
    inner = content.get(name) if isinstance(content, dict) else None
    return isinstance(inner, dict) and any(
        isinstance(value, Tensor) or (key in CONTAINERS and isinstance(value, dict))
        for key, value in inner.items()
    )


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off prefixes that wrappers put before every name."""
    for _ in range(2):
        for wrapper in WRAPPERS:
            if weights and all(name.startswith(wrapper) for name in weights):
                weights = {name[len(wrapper) :]: value for name, value in weights.items()}
    return weights


_MAX_CONFIG_JSON = 64 << 20  # bytes


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
    if path.stat().st_size > _MAX_CONFIG_JSON:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are too many for a configuration.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is a {type(content).__name__}, no configuration.")
    return content
