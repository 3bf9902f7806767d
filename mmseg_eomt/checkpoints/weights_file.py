"""Lean weights: safetensors with a JSON header, and the same header inside training checkpoints.

Reading never unpickles code: safetensors holds tensors only, and training checkpoints are read with
`weights_only=True`. Writing is atomic: a reader sees the old file or the new one, never a half.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from mmengine.dist import is_main_process
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.sharded import has_shards, like_shard, whole
from mmseg_eomt.checkpoints.torch_file import (
    PathLike,
    existing_file,
    read_training_checkpoint,
)
from mmseg_eomt.errors import listed
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from mmseg_eomt.safe_write import replaced

NOTES_KEY = "mmseg_eomt_training"


def save_weights(
    path: PathLike,
    model: nn.Module | Mapping[str, Tensor],
    header: ModelHeader,
    *,
    notes: str | None = None,
) -> None:
    """Write lean weights atomically: temporary file, fsync, rename.

    Args:
        path: Target, a `.safetensors` file.
        model: The model, or its state dict.
        header: What the file says about the model.
        notes: JSON text about the training ('step', 'metrics'); for people and for a resume.

    Of a model that is spread over processes all of them call it together; the first one writes,
    and holds one whole tensor at a time.

    Raises:
        OSError: If the file cannot be written; an older file at `path` stays as it was.
    """
    path = Path(path)
    state = unwrap(model).state_dict() if isinstance(model, nn.Module) else model
    metadata = {"format": "pt", HEADER_KEY: header.to_json()}
    if notes is not None:
        metadata[NOTES_KEY] = notes
    if has_shards(state):
        _write_gathered(path, state, metadata)
        return
    # A copy per tensor: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        # safetensors writes for its owner alone; weights are shared like any other file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path}: the weights could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):
        # The rename itself is only safe once the folder is on the disk.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_gathered(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    names = in_order(state)
    gathered = (whole(state[name]) for name in names)
    if not is_main_process():
        for _ in gathered:
            pass
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(path) as file:
            stream_weights(file, state, gathered, metadata=metadata)
    finally:
        # After an error, too, the other processes wait for this one to take the rest.
        for _ in gathered:
            pass


def read_header(path: PathLike) -> ModelHeader:
    """Read the header of lean weights or of a training checkpoint of mmseg_eomt.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither, or its header is invalid.
    """
    path = existing_file(path)
    if not is_safetensors(path):
        return read_weights(path)[0]
    with _open_safetensors(path) as file:
        return _header_of(path, (file.metadata() or {}).get(HEADER_KEY))


def read_training_notes(path: PathLike) -> dict[str, Any]:
    """Read 'step' and 'metrics' that lean weights were exported with; {} where there are none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    path = existing_file(path)
    with _open_safetensors(path) as file:
        text = (file.metadata() or {}).get(NOTES_KEY)
    try:
        notes = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"{path}: damaged training notes ({error}).") from error
    return notes if isinstance(notes, dict) else {}


def read_weights(path: PathLike) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Read header and tensors of lean weights or of a training checkpoint (its 'state_dict').

    Returns:
        The header and the tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither, is damaged, or has no valid header.
    """
    path = existing_file(path)
    if is_safetensors(path):
        with _open_safetensors(path) as file:
            header = _header_of(path, (file.metadata() or {}).get(HEADER_KEY))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checkpoint = read_training_checkpoint(path)
    return _header_of(path, checkpoint.get(HEADER_KEY)), checkpoint["state_dict"]


def load_weights(model: nn.Module, path: PathLike) -> ModelHeader:
    """Load the weights of a file with a header into a model, strictly.

    Returns:
        The header of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is unfit; keys and shapes that differ are listed.
    """
    header, state = read_weights(path)
    load_state(model, state, source=path)
    return header


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: PathLike) -> None:
    """Load a state dict strictly, before anything is changed in the model.

    Args:
        model: The model, wrapped for distributed training or not.
        state: Tensors by name.
        source: Name of the file for error messages.

    Raises:
        ValueError: If keys or shapes differ; they are listed.
    """
    model = unwrap(model)
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in sorted(set(own) & set(state))
        if own[name].shape != state[name].shape
    ]
    problems = [
        f"{title}: ({len(names)}) {listed(names)}"
        for title, names in (
            ("missing in the file", missing),
            ("not in the model", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{source}: the weights do not fit the model. Parameters {'; '.join(problems)}. "
            "Use the config (classes, architecture, queries, sizes) the file was trained with."
        )
    own_parts = {name: like_shard(value, own[name]) for name, value in state.items()}
    model.load_state_dict(own_parts, strict=True)


def is_safetensors(path: PathLike) -> bool:
    """Tell by content: eight bytes of header length, then a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:9] == b"{"


def _header_of(path: Path, text: object) -> ModelHeader:
    if not isinstance(text, str):
        raise ValueError(
            f"{path}: no model header ('{HEADER_KEY}') in the file, so it was not written by "
            "mmseg_eomt. Use exported/*.safetensors or a checkpoint of a run of mmseg_eomt; "
            "backbone weights go to backbone_weights (--backbone-weights)."
        )
    return ModelHeader.from_json(text, source=str(path))


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged safetensors file ({error}). Copy or export it again."
        ) from error


_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Sized(Protocol):
    """What a tensor is, without its values."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...


def in_order(sizes: Mapping[str, Sized]) -> list[str]:
    """Names in the order in which :func:`stream_weights` wants the values: wide dtypes first."""
    return sorted(sizes, key=lambda name: (-sizes[name].dtype.itemsize, name))


def stream_weights(
    file: BinaryIO,
    sizes: Mapping[str, Sized],
    values: Iterator[Tensor],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file.

    Args:
        file: Open for writing, at its start.
        sizes: Shape and dtype by name.
        values: The tensors in the order of :func:`in_order`; one is held at a time.
        metadata: Texts of its header.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a value has another shape or dtype than was said.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    names = in_order(sizes)
    for name in names:
        size = sizes[name]
        end = place + size.shape.numel() * size.dtype.itemsize
        entries[name] = {
            "dtype": _CODES[size.dtype],
            "shape": list(size.shape),
            "data_offsets": [place, end],
        }
        place = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for name, value in zip(names, values, strict=True):
        if value.shape != sizes[name].shape or value.dtype != sizes[name].dtype:
            raise ValueError(
                f"{name}: {tuple(value.shape)} {value.dtype}, expected "
                f"{tuple(sizes[name].shape)} {sizes[name].dtype}."
            )
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        file.write(numbers.data)
