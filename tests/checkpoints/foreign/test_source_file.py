"""Files that are no weights, and weights in the containers that programs put them in."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmseg_eomt.checkpoints.foreign.source_file import read_weights


def test_format_is_told_by_content(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0)}
    save_file(weights, tmp_path / "weights.pth")
    torch.save(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["a"], weights["a"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "meta": {"iter": 3}},
        lambda w: {"model": {f"module._orig_mod.{n}": v for n, v in w.items()}},
        lambda w: {"teacher": {"state_dict": w}},
    ],
)
def test_containers_and_wrappers_are_taken_off(wrap, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.save(wrap({"a.b": torch.ones(2), "c": torch.ones(1)}), tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth")) == {"a.b", "c"}


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (flag,)

    torch.save({"a": torch.ones(1), "evil": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth.*plain weights"):
        read_weights(tmp_path / "w.pth")
    with (tmp_path / "old.pth").open("wb") as file:
        pickle.dump({"evil": Evil()}, file)
    with pytest.raises(ValueError, match=r"old\.pth"):
        read_weights(tmp_path / "old.pth")
    assert not flag.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "no complete safetensors"),
        (b"PK\x03\x04 not really", "cannot be read"),
    ],
)
def test_what_is_no_weights_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_weights(tmp_path / "w.bin")


def test_cut_file_is_told(tmp_path: Path) -> None:
    for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
        save({"a": torch.ones(1000)}, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)


def test_missing_file_and_folder_without_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        read_weights(tmp_path)


def test_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ValueError, match="outside"):
        read_weights(index)
