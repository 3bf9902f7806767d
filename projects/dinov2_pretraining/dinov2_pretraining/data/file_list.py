"""The list of a dataset's images, found in folders or read from a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from mmseg_eomt.images.reading import IMAGE_SUFFIXES

LIST_SUFFIX = ".txt"
_SHOWN = 5
_LOOKED_AT = 32  # entries of a list file
_SECONDS = 10.0  # between lines of progress


class FileList(Sequence[str]):
    """Paths in one block of memory, which workers share: a hundred bytes a path.

    Args:
        paths (Iterable[str]): In the order they are to have.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        text = bytearray()
        ends = [0]
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text = np.frombuffer(bytes(text), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]].tobytes())


def find_images(data: str | Path | Sequence[str | Path]) -> FileList:
    """All images of some folders, nested ones included, or those that list files name.

    Links are followed. A folder that is reached twice counts once. The order is that of the
    arguments, then of the names. Hidden files and folders are passed over.

    Args:
        data (str | Path | Sequence): Folders, or text files (``.txt``, UTF-8) with one path a
            line, relative ones counted from the file's folder.

    Raises:
        FileNotFoundError: If there is no such folder or file, or no image in it.
        ValueError: If ``data`` is empty, or names a file that is no list.
    """
    given = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    sources = [os.fspath(source) for source in given]
    if not sources:
        raise ValueError("data is empty: give a folder of images, several, or a list file (.txt).")
    progress = _Progress()
    seen: set[str] = set()

    def paths() -> Iterator[str]:
        for source in sources:
            before = progress.count
            found = _listed(source) if os.path.isfile(source) else _in_folder(source, seen)
            for path in found:
                progress.add(source)
                yield path
            print_log(f"{source}: {progress.count - before} images.", logger="current")

    return FileList(paths())


class _Progress:
    """Says now and then how far a long search has come."""

    def __init__(self) -> None:
        self.count = 0
        self._spoken = time.monotonic()

    def add(self, source: str) -> None:
        self.count += 1
        if self.count % 1000 == 0 and time.monotonic() - self._spoken > _SECONDS:
            self._spoken = time.monotonic()
            print_log(f"Looking for images in {source}: {self.count} so far.", logger="current")


def _in_folder(folder: str, seen: set[str]) -> Iterator[str]:
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"data: {folder}: there is no such folder or list file. Correct the path."
        )
    found = False
    others: dict[str, int] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # given twice, or a link that leads back
            found = True
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):  # .DS_Store, ._shadow files of macOS
                continue
            if suffix in IMAGE_SUFFIXES:
                found = True
                yield os.path.join(parent, name)
            else:
                others[suffix or "no suffix"] = others.get(suffix or "no suffix", 0) + 1
    if not found:
        kinds = ", ".join(f"{count} files with {suffix}" for suffix, count in others.items())
        raise FileNotFoundError(
            f"data: {folder}: no images; it holds {kinds or 'no files'}. Images end in "
            f"{', '.join(IMAGE_SUFFIXES)}. Correct the path or convert the files."
        )


def _listed(source: str) -> list[str]:
    if not source.lower().endswith(LIST_SUFFIX):
        raise ValueError(
            f"data: {source} is a file; give folders of images, or a text file ending in "
            f"{LIST_SUFFIX} with one path a line."
        )
    folder = os.path.dirname(os.path.abspath(source))
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {source} is not UTF-8 ({error}). Save it as UTF-8.") from None
    names = dict.fromkeys(line.strip() for line in lines)  # each counts once
    paths = [os.path.join(folder, name) for name in names if name]
    if not paths:
        raise FileNotFoundError(f"data: {source} names no images. Write one path a line.")
    step = max(1, len(paths) // _LOOKED_AT)
    looked_at = paths[::step]
    missing = [path for path in looked_at if not os.path.isfile(path)]
    if len(missing) == len(looked_at):
        raise FileNotFoundError(
            f"data: {source}: none of the {len(looked_at)} files looked at exists, such as "
            f"{', '.join(missing[:_SHOWN])}. Relative paths count from the folder of the list."
        )
    return paths
