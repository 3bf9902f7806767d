"""Files that are there as a whole or not at all: temporary file, sync, rename, sync of the folder.

A reader, a kill or a power cut at any moment sees the old file or the new one, never a half.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# '.NAME.PID.tmp'; those of lean weights have the same form.
_TEMPORARY = re.compile(
    r"\.(iter_\d+\.pth|best_.+\.pth|last_checkpoint|.+\.safetensors)\.\d+\.tmp"
    r"|\.(iter_\d+|best_.+)\.sharded(\.old)?\.tmp"
)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    Args:
        path: The file to write; its folder exists.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: If it cannot be written; `path` is then what it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: could not be written ({error.strerror or error}; "
            f"{_free(path.parent)} free). Nothing that was there before is lost: free some space "
            "or mend the folder, then continue with --resume",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file as a whole.

    Raises:
        OSError: If it cannot be written.
    """
    with replaced(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Bring renames in a folder to the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove what killed writes left in a folder; returns what was removed."""
    left = [path for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
    except OSError:
        return "an unknown amount of space"
