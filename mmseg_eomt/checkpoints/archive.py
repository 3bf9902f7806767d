"""Refuses PyTorch files that would unpack to far more than they hold.

A ``.pth`` file is a zip archive. PyTorch never compresses its parts, but would inflate compressed
ones; and a tensor may claim a shape that repeats one stored number. Both make small files that fill
the memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

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
