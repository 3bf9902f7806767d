"""Files of torch.save with a checksum inside, which every reader of such files still reads.

torch.save writes a ZIP archive, and a ZIP archive may end in a comment. Ours holds the SHA-256 of
all bytes before it (the length field of the comment included), so that the checksum travels with
the file, is renamed into place with it, and a flipped bit or a missing end cannot pass.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

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
