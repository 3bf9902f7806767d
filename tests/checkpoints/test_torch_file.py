"""The checksum inside a checkpoint, and what a disk that is full leaves behind."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmseg_eomt.checkpoints.run_folder import write_checkpoint
from mmseg_eomt.checkpoints.torch_file import SEAL_BYTES, as_plain, load_sealed, verify

CONTENT = {"state_dict": {"a": torch.arange(300.0)}, "meta": {"iter": 3, "names": ("x", None)}}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "iter_3.pth"
    write_checkpoint(path, CONTENT)
    return path


def test_a_sealed_file_is_an_ordinary_file_of_torch(sealed: Path) -> None:
    assert verify(sealed)
    for mmap in (False, True):
        loaded = torch.load(sealed, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["state_dict"]["a"], torch.arange(300.0))
        assert loaded["meta"] == CONTENT["meta"]
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None
    assert sealed.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_flipped_bit_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    places = {*range(0, len(content), 37), *range(len(content) - SEAL_BYTES - 30, len(content))}
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        sealed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"iter_3\.pth: damaged"):
            verify(sealed)


def test_every_cut_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    for length in (0, 1, 3, 4, 100, len(content) // 2, *range(len(content) - 90, len(content))):
        sealed.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"iter_3\.pth: (damaged|not a readable)"):
            load_sealed(sealed)


def test_files_without_our_checksum_are_checked_by_their_own(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(CONTENT, path)
    assert not verify(path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(300.0).numpy().tobytes()) + 100
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"theirs\.pth: damaged: .* CRC-32"):
        load_sealed(path)


def test_a_compressed_archive_is_refused_before_it_expands(sealed: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(sealed) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
        target.writestr("archive/data/9", b"\0" * (1 << 20))
    with pytest.raises(ValueError, match=r"bomb\.pth: holds compressed data"):
        load_sealed(bomb)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\]\[1\] is a pathlib\."):
        write_checkpoint(path, {**CONTENT, "extra": [0, Path("x")]})
    assert list(tmp_path.iterdir()) == []


def test_numpy_and_subclasses_become_plain() -> None:
    import numpy as np

    class Named(str):
        pass

    plain = as_plain({"a": np.float64(2), "b": np.arange(3), "c": Named("x"), "d": (True, 1)})
    assert plain["a"] == 2.0 and type(plain["a"]) is float
    assert torch.equal(plain["b"], torch.arange(3))
    assert type(plain["c"]) is str and plain["d"] == (True, 1) and plain["d"][0] is True


@pytest.fixture
def small_files() -> Iterator[None]:
    """Writes beyond 200 kB fail. (Python ignores the signal that comes with it.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_failing_write_ends_in_a_clear_error_and_leaves_the_last_file(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    write_checkpoint(path, CONTENT)
    before = path.read_bytes()
    words = (
        r"iter_1\.pth: could not be written \(File too large; [\d,]+ MiB free\)\. "
        "Nothing that was there before is lost"
    )
    with pytest.raises(OSError, match=words) as error:
        write_checkpoint(path, {"state_dict": {"a": torch.rand(100, 1000)}})
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["iter_1.pth"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_file(small_disk: Path) -> None:
    path = small_disk / "iter_1.pth"
    write_checkpoint(path, CONTENT)
    for target in (path, small_disk / "iter_2.pth"):
        with pytest.raises(OSError, match=rf"{target.name}: could not be .*No space left") as error:
            write_checkpoint(target, {"state_dict": {"a": torch.rand(1000, 1000)}})
        assert error.value.errno == errno.ENOSPC
    assert [child.name for child in small_disk.iterdir()] == ["iter_1.pth"]
    assert load_sealed(path)["meta"] == CONTENT["meta"]
