"""Finding the checkpoint to resume from, whatever else lies in the folder."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_eomt.checkpoints.run_folder import (
    checkpoints_of,
    newest_intact,
    read_resumable,
    set_aside,
    write_checkpoint,
)
from mmseg_eomt.safe_write import remove_temporaries

GOOD: dict[str, Any] = {
    "state_dict": {"a": torch.arange(300.0)},
    "meta": {"iter": 3},
    "message_hub": {},
    "optimizer": {},
}


class Runs:
    """Pickles as code that leaves a file behind."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trap}",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>Please log in</html>")


def code_in_archive(path: Path) -> None:
    torch.save({**GOOD, "extra": Runs(path.with_name("trap"))}, path)


def code_in_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(path.with_name("trap"))))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without(*keys: str) -> Callable[[Path], None]:
    return lambda path: write_checkpoint(path, {k: v for k, v in GOOD.items() if k not in keys})


def with_(**changes: Any) -> Callable[[Path], None]:
    return lambda path: write_checkpoint(path, {**GOOD, **changes})


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, r"damaged or cut short"),
    "bit flipped": (flip, r"damaged: its content does not match its SHA-256"),
    "0 bytes": (empty, r"damaged: an empty file"),
    "web page": (garbage, r"not a readable checkpoint"),
    "code in the archive": (code_in_archive, r"asks to run or load code, .*system"),
    "code in a bare pickle": (code_in_pickle, r"not a readable checkpoint .*without running code"),
    "folder": (folder, r"is a folder"),
    "no weights": (without("state_dict"), r"no 'state_dict'"),
    "no optimiser": (without("optimizer"), r"cannot be resumed: it has no optimizer"),
    "no meta, no hub": (without("meta", "message_hub"), r"it has no meta, message_hub"),
    "no step": (with_(meta={}), r"meta\.iter is None"),
    "negative step": (with_(meta={"iter": -4}), r"meta\.iter is -4"),
    "NaN weights": (
        with_(state_dict={"ok": torch.ones(2), "bad": torch.tensor([1.0, float("nan")])}),
        r"1 of its weights are NaN, the first is bad",
    ),
    "weights that are text": (with_(state_dict={"a": "b"}), r"no 'state_dict' of tensors"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_newest_checkpoint_is_named_and_passed_over(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, words = HOSTILE[kind]
    older, newest = tmp_path / "iter_20.pth", tmp_path / "iter_100.pth"
    write_checkpoint(older, GOOD)
    write_checkpoint(newest, GOOD)
    assert newest_intact(tmp_path) == newest
    spoil(newest)
    # Asked for by name it is an error, and on its own a folder of it is one, too.
    with pytest.raises(ValueError, match=rf"iter_100\.pth.*{words}"):
        read_resumable(newest)
    assert newest_intact(tmp_path) == older
    older.unlink()
    with pytest.raises(ValueError, match=rf"none of its 1 checkpoints.*{words}"):
        newest_intact(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / "iter_x.pth").touch()
    (tmp_path / "best_mIoU_iter_3.pth").touch()
    (tmp_path / "last_checkpoint").write_text("/somewhere/else/iter_3.pth")
    assert newest_intact(tmp_path) is None


def test_later_checkpoints_are_set_aside_not_deleted(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path / f"iter_{step}.pth", GOOD)
    content = (tmp_path / "iter_6.pth").read_bytes()
    (tmp_path / "iter_6.pth.set_aside").write_text("from before")
    moved = set_aside(tmp_path, after=4)
    assert [path.name for path in moved] == ["iter_6.pth.set_aside2"]
    assert moved[0].read_bytes() == content
    assert list(checkpoints_of(tmp_path)) == [2, 4]
    assert (tmp_path / "iter_6.pth.set_aside").read_text() == "from before"


def test_only_our_own_temporaries_are_removed(tmp_path: Path) -> None:
    ours = [".iter_4.pth.123.tmp", ".best_mIoU_iter_4.pth.9.tmp", ".last_checkpoint.1.tmp"]
    ours.append(".last.safetensors.77.tmp")
    others = [".notes.tmp", "iter_4.pth.1.tmp", ".iter_4.pth", "iter_4.pth"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    assert {path.name for path in remove_temporaries(tmp_path)} == set(ours)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
