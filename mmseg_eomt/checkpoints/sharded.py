"""Training checkpoints of which every process writes and reads its own part.

A folder, ``iter_N.sharded``:

=====================  ==========================================================================
``shard-*.safetensors``  rows of weights, averaged weights and optimiser state, and where they
                         belong, as torch.distributed.checkpoint plans them: any number of
                         processes can read what any other number wrote
``run.pth``              all else that is in a training checkpoint, with a checksum
``manifest.json``        size and SHA-256 of each shard; written last
=====================  ==========================================================================

It is written under another name and renamed when all of it is on the disk. Nothing in it is
unpickled beyond plain data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from mmseg_eomt.checkpoints.torch_file import as_plain, load_sealed, save_sealed
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from mmseg_eomt.safe_write import replaced, sync_folder


def has_shards(state: Mapping[str, Any]) -> bool:
    """Whether any tensor of a state dict is one that processes share."""
    return any(isinstance(value, DTensor) for value in state.values())


def fill_shard(target: Tensor, value: Tensor) -> None:
    """Copies into ``target`` the part of ``value`` that belongs there, without communication.

    Args:
        target (Tensor): A shard, or a whole tensor.
        value (Tensor): The whole tensor, equal on all processes; or one like ``target``.
    """
    if isinstance(target, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(
            value.detach(), target.device_mesh, target.placements, src_data_rank=None
        )
    target.detach().copy_(value)


def like_shard(value: Tensor, target: Tensor) -> Tensor:
    """``value`` as ``target`` is held: the rows of this process where that is a shard."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    own = torch.empty_like(target)
    fill_shard(own, value)
    return own


def whole(value: Any) -> Any:
    """The whole tensor of a shard, gathered from all processes; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


SUFFIX = ".sharded"
REST = "run.pth"
MANIFEST = "manifest.json"
# What stands in run.pth for a tensor that lies in the shards.
_PLACE = "mmseg_eomt shard"
# Bytes of a process's share in one file; it is made in memory before it is written.
_FILE = 2 << 30
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the shards of a checkpoint, not read yet.

    Attributes:
        name: Of it in the shards.
        shape: Whole.
        dtype: Of its values.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype


def is_sharded_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is such a folder."""
    path = Path(path)
    return path.is_dir() and (path / REST).is_file() and (path / MANIFEST).is_file()


def write_sharded(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint that holds shards; all processes call it together.

    A folder of that name is of the same step of the same run, so its shards are left and
    ``run.pth`` alone is replaced.

    Args:
        path: ``iter_N.sharded`` or ``best_*.sharded`` in the run's folder, which all share.
        checkpoint: Tensors, shards and plain data.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
        TypeError: If something in it could not be read back without unpickling code.
    """
    shards: dict[str, Tensor] = {}
    rest = as_plain(_taken_out(checkpoint, shards, ""))
    if is_sharded_folder(path):
        if is_main_process():
            with replaced(path / REST) as file:
                save_sealed(rest, file)
        barrier()
        return
    temporary = path.with_name(f".{path.name}.tmp")
    if is_main_process():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    _save_shards(shards, temporary, target=path)
    sums = _checksums(temporary)
    if is_main_process():
        with replaced(temporary / REST) as file:
            save_sealed(rest, file)
        with replaced(temporary / MANIFEST) as file:
            file.write(json.dumps({"files": sums}, indent=1).encode())
        temporary.rename(path)
        sync_folder(path.parent)
    barrier()


def read_rest(path: str | Path) -> dict[str, Any]:
    """Read all of a checkpoint but its shards, for which a :class:`StoredTensor` stands.

    Raises:
        ValueError: If it is damaged: a shard is missing or has another size, or ``run.pth`` does
            not match its checksum. What is in the shards is checked by :func:`load_stored`.
    """
    path = Path(path)
    for name, entry in _manifest(path).items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != entry["bytes"]:
            raise ValueError(
                f"{path}: damaged: {name} should have {entry['bytes']:,} bytes, and "
                f"{'is missing' if found is None else f'has {found:,}'}."
            )
    rest = _put_back(load_sealed(path / REST))
    if not isinstance(rest, dict):
        raise ValueError(f"{path}: damaged: {REST} holds a {type(rest).__name__}.")
    return rest


def load_stored(path: str | Path, wanted: Mapping[StoredTensor, Tensor]) -> None:
    """Read tensors of a checkpoint; in a distributed run all processes call it together.

    Args:
        path: The folder.
        wanted: What is read, and where to: whole tensors, or shards over any number of processes,
            which then read their own rows alone.

    Raises:
        ValueError: On all processes, if a file does not match its checksum.
    """
    path = Path(path)
    sums = _manifest(path)
    names = sorted(sums)[get_rank() :: get_world_size()]
    broken = [name for name in names if _sha256(path / name) != sums[name]["sha256"]]
    problems = [name for part in all_gather_object(broken) for name in part]
    if problems:
        raise ValueError(
            f"{path}: damaged: {', '.join(problems)} does not match its SHA-256. Resume from an "
            "earlier checkpoint (--resume PATH)."
        )
    state: dict[str, Any] = {stored.name: target for stored, target in wanted.items()}
    load(state, storage_reader=_storage().HuggingFaceStorageReader(str(path)))


def map_tensors(tree: Any, change: Callable[[tuple[Any, ...], Any], Any]) -> Any:
    """``tree`` with ``change(keys, value)`` for each tensor or :class:`StoredTensor` in it."""

    def mapped(value: Any, keys: tuple[Any, ...]) -> Any:
        if isinstance(value, (Tensor, StoredTensor)):
            return change(keys, value)
        if isinstance(value, Mapping):
            return {key: mapped(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(mapped(item, (*keys, i)) for i, item in enumerate(value))
        return value

    return mapped(tree, ())


def iterate_stored(path: str | Path, stored: list[StoredTensor]) -> Iterator[Tensor]:
    """Whole tensors of a checkpoint, read one after the other; in one process."""
    for item in stored:
        value = torch.empty(item.shape, dtype=item.dtype)
        reader = _storage().HuggingFaceStorageReader(str(path))
        load({item.name: value}, storage_reader=reader, no_dist=True)
        yield value


def read_stored_weights(
    path: str | Path,
) -> tuple[ModelHeader, dict[str, StoredTensor], dict[str, Tensor]]:
    """The model in a checkpoint: its header, weights in the shards, and buffers beside them.

    Raises:
        ValueError: If it is damaged, shards included, or has no header.
    """
    path = Path(path)
    rest = read_rest(path)
    sums = _manifest(path)
    broken = [name for name in sums if _sha256(path / name) != sums[name]["sha256"]]
    if broken:
        raise ValueError(f"{path}: damaged: {', '.join(broken)} does not match its SHA-256.")
    header = ModelHeader.from_json(str(rest.get(HEADER_KEY)), source=str(path))
    state = rest["state_dict"]
    stored = {name: value for name, value in state.items() if isinstance(value, StoredTensor)}
    return header, stored, {n: value for n, value in state.items() if isinstance(value, Tensor)}


def _taken_out(value: Any, shards: dict[str, Tensor], name: str) -> Any:
    """``value`` with a note in the place of every shard, which go to ``shards``."""
    if isinstance(value, DTensor):
        shards[name] = value.detach()
        kind = str(value.dtype).removeprefix("torch.")
        return {_PLACE: name, "shape": list(value.shape), "dtype": kind}
    if isinstance(value, Mapping):
        return {
            key: _taken_out(v, shards, f"{name}/{key}" if name else str(key))
            for key, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [_taken_out(item, shards, f"{name}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _put_back(value: Any) -> Any:
    if isinstance(value, Mapping):
        if _PLACE in value:
            dtype = getattr(torch, str(value["dtype"]))
            return StoredTensor(str(value[_PLACE]), torch.Size(value["shape"]), dtype)
        return {key: _put_back(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_put_back(item) for item in value)
    return value


def _save_shards(shards: dict[str, Tensor], folder: Path, *, target: Path) -> None:
    world = get_world_size()
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, value in shards.items():
        share = value.numel() * value.dtype.itemsize // world
        if size and size + share > _FILE:
            number, size = number + 1, 0
        files[name], size = number, size + share
    writer = _storage().HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=files, save_distributed=True
    )
    try:
        save(dict(shards), storage_writer=writer)
    except CheckpointException as error:
        reasons = sorted({str(reason[0]) for reason in error.failures.values()})
        raise OSError(
            f"{target}: could not be written ({'; '.join(reasons)}). Nothing that was there before "
            "is lost: free some space or mend the folder, then continue with --resume"
        ) from error


def _storage() -> Any:
    """torch's module that plans onto safetensors, which older versions do not have."""
    try:
        from torch.distributed.checkpoint import hf_storage
    except ImportError as error:
        raise RuntimeError(
            f"torch {torch.__version__} cannot write checkpoints in shards as safetensors: install "
            "torch 2.9 or newer, or train without strategy=dict(type='FSDP2')."
        ) from error
    return hf_storage


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Of all files; each process reads some of them, and all get the whole."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    own = {}
    for name in names[get_rank() :: get_world_size()]:
        own[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    parts = all_gather_object(own)
    return {name: entry for part in parts for name, entry in sorted(part.items())}


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        files: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_text())["files"]
        for name, entry in files.items():
            if Path(name).name != name:
                raise ValueError(f"{name!r} lies outside of the folder")
            int(entry["bytes"]), str(entry["sha256"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no readable {MANIFEST} ({error}): it is damaged.") from error
    return files


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
