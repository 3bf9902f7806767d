"""Files of torch.save: sealed by a checksum, and read as plain data without running anything.

torch.save writes a ZIP archive, and a ZIP archive may end in a comment. Ours holds the SHA-256 of
all bytes before it (the length field of the comment included), so that the checksum travels with
the file, is renamed into place with it, and a flipped bit or a missing end cannot pass.

A ``.pth`` file is a zip archive. PyTorch never compresses its parts, but would inflate compressed
ones; and a tensor may claim a shape that repeats one stored number. Both make small files that fill
the memory.

A training checkpoint may hold objects of classes beside its weights (LightlyTrain's ``last.ckpt``
holds a whole data loader). Each foreign name in the pickle is answered by a stand-in that does
nothing and keeps nothing; torch's weights-only reader does the rest. So no foreign class is
imported, let alone called.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from torch import Tensor

MARK = b"mmseg_eomt sha256 "
SEAL_BYTES = len(MARK) + 64
_CHUNK = 1 << 22
# What the restricted unpickler and torch's archive reader raise for files that are something else.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    OSError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
    OverflowError,
    MemoryError,
)


class _HashingFile:
    """What torch.save writes into: hashes on the way, and holds the last two bytes back.

    The archive's last two bytes are the length of its comment, 0 as torch writes them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._held = file, b""
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        count = len(data)
        data = self._held + bytes(data) if count < 2 else data
        if self.error is None:
            if count >= 2:
                self._put(self._held)
            self._put(data[:-2])
            self._held = bytes(data[-2:])
        # After an error the rest is dropped: an exception inside torch's writer loses its message.
        return count

    def flush(self) -> None:
        """Left to the owner of the file."""

    def seal(self) -> None:
        """Ends the archive with the comment.

        Raises:
            OSError: The first one of all writes.
            ValueError: If what was written is no archive without a comment.
        """
        if self.error is None:
            if self._held != b"\0\0":
                raise ValueError("torch.save did not write an archive that can take a checksum.")
            self._put(SEAL_BYTES.to_bytes(2, "little"))
            self._put(MARK + self.digest.hexdigest().encode())
        if self.error is not None:
            raise self.error

    def _put(self, data: Any) -> None:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
            else:
                self.digest.update(data)


def save_sealed(content: Any, file: BinaryIO) -> None:
    """torch.save with the checksum, in one pass and without a copy in memory.

    Args:
        content: Plain data and tensors.
        file: Open for writing, at its start.

    Raises:
        OSError: If the file cannot be written.
    """
    target = _HashingFile(file)
    torch.save(content, target)  # type: ignore[arg-type]  # needs no more than write and flush
    target.seal()


def load_sealed(path: str | os.PathLike[str]) -> Any:
    """Verify a file of torch.save and read it on the CPU, without unpickling code.

    Args:
        path: The file, with our checksum or without one.

    Raises:
        ValueError: If it is damaged, holds code, or is something else.
    """
    verify(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip() or type(error).__name__
        asked = re.search(r"GLOBAL (\S+)", reason)
        if asked:
            reason = f"it asks to run or load code, {asked[1]}, which is never done"
        elif "Weights only load failed" in reason:
            reason = "it is no file of torch.save that can be read without running code"
        else:
            reason = reason.splitlines()[0][:200]
        raise ValueError(
            f"{path}: not a readable checkpoint ({reason}). Allowed: lean weights (.safetensors) "
            "or a training checkpoint (.pth) written by mmseg_eomt or mmengine; a damaged file "
            "must be copied or trained again."
        ) from error


def verify(path: str | os.PathLike[str]) -> bool:
    """Check a file of torch.save before it is read.

    Args:
        path: The file.

    Returns:
        Whether it carries our checksum. Without one (other writers) the archive's own CRC-32
        sums are checked; a file that is no archive is left to the reader.

    Raises:
        ValueError: If it is damaged, or expands to more than its own size.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, size - SEAL_BYTES))
        seal = file.read(SEAL_BYTES)
        if seal.startswith(MARK):
            digest = hashlib.sha256()
            file.seek(0)
            left = size - SEAL_BYTES
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
            if seal[len(MARK) :] != digest.hexdigest().encode():
                raise ValueError(f"{path}: damaged: its content does not match its SHA-256.")
    sealed = seal.startswith(MARK)
    if size == 0:
        raise ValueError(f"{path}: damaged: an empty file (0 bytes).")
    if start == b"PK\x03\x04":
        if not sealed and not seal.endswith(b"\0\0"):
            # torch.save itself writes no comment: the length of one is the last it writes, 0.
            raise ValueError(f"{path}: damaged or cut short: the checksum at its end is broken.")
        _check_archive(path, sealed=sealed)
    return sealed


def _check_archive(path: Path, *, sealed: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [
                item.filename
                for item in archive.infolist()
                if item.compress_type != zipfile.ZIP_STORED or item.file_size > item.compress_size
            ]
            if packed:
                # torch.save never compresses; a few bytes could expand to any size in memory.
                raise ValueError(
                    f"{path}: holds compressed data ({packed[0]}), which torch.save never writes. "
                    "It is refused because it may expand to any size."
                )
            broken = None if sealed else archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}).") from error
    if broken is not None:
        raise ValueError(f"{path}: damaged: {broken} does not match its CRC-32.")


# Tensors may share storage (tied weights): as many times the file's size is believed.
_SHARING = 4
_SLACK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether the file starts as a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_archive(path: Path) -> None:
    """Checks the table of contents and the checksums of a zip archive; other files pass.

    torch.load does not look at the checksums that torch.save writes.

    Raises:
        ValueError: If it is damaged, or holds compressed parts.
    """
    if not is_archive(path):
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            unpacked = sum(part.file_size for part in parts)
            compressed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
            if compressed or unpacked > size:
                raise _Bomb
            damaged = archive.testzip()
    except _Bomb:
        raise ValueError(
            f"{str(path)!r} is {size:,} bytes and would unpack to {unpacked:,}; {len(compressed)} "
            f"of its {len(parts)} parts are compressed, which PyTorch never does. It is refused, "
            "since such a file can fill the memory. Save it again with torch.save."
        ) from None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as PyTorch weights ({error}). It may be cut short; "
            "fetch it again."
        ) from error
    if damaged is not None:
        raise ValueError(
            f"{str(path)!r} is damaged: the checksum of its part {damaged!r} is wrong. Fetch it "
            "again."
        )


class _Bomb(Exception):
    """The archive would unpack to more than it holds."""


def check_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Checks that tensors are not larger than what is stored of them.

    Raises:
        ValueError: If one is, with its name.
    """
    size = path.stat().st_size
    total = 0
    for name, value in weights.items():
        wanted = value.numel() * value.element_size()
        total += wanted
        if wanted > size + _SLACK or total > _SHARING * size + _SLACK:
            raise ValueError(
                f"{str(path)!r} is {size:,} bytes, but its tensor {name!r} of shape "
                f"{tuple(value.shape)} would take {wanted:,} (all up to it: {total:,}). It repeats "
                "stored numbers, which no program saves; the file is refused."
            )


class StandIn:
    """Takes the place of any class or function, and ignores everything."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def read_past_objects(path: Path) -> Any:
    """The content of a PyTorch file with a `StandIn` for each object that is not plain data.

    Raises:
        ValueError: If it cannot be read even so.
    """
    check_archive(path)
    if not is_archive(path):
        raise ValueError(f"{path}: is in PyTorch's old format, whose objects cannot be left out.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # One class for each name: torch tells them apart by the class.
        allowed: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in names]
        with torch.serialization.safe_globals(allowed), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path}: cannot be read ({str(error)[:200]}).") from error


def holds_objects(content: Any) -> bool:
    """Whether a stand-in lies anywhere in dicts, lists and tuples."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StandIn) or (isinstance(item, type) and issubclass(item, StandIn)):
            return True
        if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item.keys(), *item.values()] if isinstance(item, dict) else item
    return False


def as_plain(value: Any, *, name: str = "checkpoint") -> Any:
    """`value` made of dict, list, tuple, str, bytes, int, float, bool, None and CPU tensors.

    NumPy values become Python's or tensors, config containers plain ones.

    Args:
        value: The data.
        name: What it is called in errors.

    Raises:
        TypeError: Naming the place of anything else.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, Mapping):
        return {
            as_plain(key, name=name): as_plain(item, name=f"{name}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [as_plain(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    kinds: tuple[Any, ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)  # without its subclass (such as SampleIndex), which would be code
    if value is None or isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return value
    raise TypeError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}: a training checkpoint "
        "holds plain data and tensors only, because reading anything else would run code. Store "
        "its values instead."
    )


PathLike = Union[str, "os.PathLike[str]"]


def read_training_checkpoint(path: PathLike) -> dict[str, Any]:
    """Read an MMEngine checkpoint without unpickling code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code, or has no 'state_dict' of tensors.
    """
    path = existing_file(path)
    checkpoint: dict[str, Any] = load_sealed(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(
            f"{path}: no training checkpoint of MMSegmentation: it has no 'state_dict' of tensors. "
            "Pretrained backbones go to backbone_weights (--backbone-weights)."
        )
    return checkpoint


def existing_file(path: PathLike) -> Path:
    path = Path(path)
    if path.name.endswith(".sharded") and path.is_dir():
        raise ValueError(
            f"{path}: is a checkpoint in shards; make weights of it first: python "
            f"tools/convert_checkpoint.py {path} OUT.safetensors"
        )
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a weights file (.safetensors or .pth) in it.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file (.safetensors or .pth).")
    return path
