"""Files that are damaged, wrong or malicious: what each gives, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmseg_eomt
from mmseg_eomt.checkpoints.foreign.source_file import read_weights
from tests.checkpoints.layouts import lightly, meta_style, official, oracle_of

Maker = Callable[[Path], Path]
ORACLES: dict[str, Any] = {}


class Code:
    """Pickled, it is a call that makes a file."""

    def __reduce__(self) -> Any:
        return (shutil.copyfile, (os.devnull, "pwned"))


def oracle(family: str) -> Any:
    if family not in ORACLES:
        torch.manual_seed(0)
        ORACLES[family] = oracle_of(family)
    return ORACLES[family]


def whole(folder: Path) -> Path:
    torch.save(official(oracle("dinov2")), folder / "bad")
    return folder / "bad"


def whole_safetensors(folder: Path) -> Path:
    save_file(official(oracle("dinov2")), folder / "bad")
    return folder / "bad"


def hf_folder(folder: Path) -> Path:
    oracle("dinov2").save_pretrained(folder / "bad")
    return folder / "bad"


def changed(**weights: Any) -> Maker:
    """An official file with some weights replaced; None takes one out."""

    def make(folder: Path) -> Path:
        content: dict[str, Any] = official(oracle("dinov2"))
        for name, value in weights.items():
            name = next((n for n in content if n.endswith(name.replace("__", "."))), name)
            content[name] = value
            if value is None:
                del content[name]
        torch.save(content, folder / "bad")
        return folder / "bad"

    return make


def cut(make: Maker, share: float) -> Maker:
    def cutting(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return cutting


def flipped(make: Maker, place: float) -> Maker:
    def flipping(folder: Path) -> Path:
        path = make(folder)
        content = bytearray(path.read_bytes())
        content[int(len(content) * place)] ^= 0x40
        path.write_bytes(content)
        return path

    return flipping


def filled(content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "bad").write_bytes(content)
        return folder / "bad"

    return make


def saved(content: Callable[[], Any]) -> Maker:
    def make(folder: Path) -> Path:
        torch.save(content(), folder / "bad")
        return folder / "bad"

    return make


def with_json(name: str, text: str) -> Maker:
    def make(folder: Path) -> Path:
        path = hf_folder(folder)
        (path / name).write_text(text)
        return path

    return make


def without(name: str) -> Maker:
    def make(folder: Path) -> Path:
        path = hf_folder(folder)
        (path / name).unlink()
        return path

    return make


def bomb(folder: Path) -> Path:
    """A PyTorch file whose tensor of 64 MiB of zeros was compressed to 64 KiB."""
    value = torch.zeros(1 << 24)
    torch.save({"network.q.weight": value}, folder / "plain")
    with (
        zipfile.ZipFile(folder / "plain") as plain,
        zipfile.ZipFile(folder / "bad", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (folder / "plain").unlink()
    assert (folder / "bad").stat().st_size < 1 << 20
    return folder / "bad"


def repeated() -> Any:
    """One stored number that claims to be 4 TiB of them."""
    return {
        **official(oracle("dinov2")),
        "network.q.weight": torch.zeros(1).expand(1 << 20, 1 << 20),
    }


def empty_folder(folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


def two_in_folder(folder: Path) -> Path:
    path = empty_folder(folder)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"a": torch.zeros(1)}, path / name)
    return path


def lost_shard(folder: Path) -> Path:
    oracle("dinov2").save_pretrained(folder / "bad", max_shard_size="300KB")
    sorted((folder / "bad").glob("model-*.safetensors"))[1].unlink()
    return folder / "bad"


def shard_outside(folder: Path) -> Path:
    path = empty_folder(folder)
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def nan(*shape: int) -> torch.Tensor:
    return torch.full(shape, float("nan"))


def delta(folder: Path) -> Path:
    weights = official(oracle("dinov3"))
    for name in weights:
        if "encoder" in name:
            weights[name] *= 1e-3
    torch.save(weights, folder / "bad")
    return folder / "bad"


def objects_in_settings() -> Any:
    return {**lightly(oracle("dinov2"), classes=Code()), "train_dataloader": Code()}


# Kind of file -> (how it is made, what is raised, what the message says).
HOSTILE: dict[str, tuple[Maker, type[Exception], str]] = {
    "no such file": (lambda f: f / "bad", FileNotFoundError, "no weights file"),
    "0 bytes": (filled(b""), ValueError, "is empty"),
    "zeros": (filled(bytes(4096)), ValueError, "cannot be read|no PyTorch file"),
    "text": (filled(b"hello, world. " * 50), ValueError, "cannot be read|no PyTorch file"),
    "a web page": (filled(b"<!DOCTYPE html><html>"), ValueError, "web page"),
    "a Git LFS pointer": (filled(b"version https://git-lfs.github.com"), ValueError, "LFS"),
    "truncated .pth, half": (cut(whole, 0.5), ValueError, "cut short"),
    "truncated .pth, end": (cut(whole, 0.9999), ValueError, "cut short"),
    "truncated safetensors, half": (cut(whole_safetensors, 0.5), ValueError, "no complete"),
    "truncated safetensors, header": (cut(whole_safetensors, 0.002), ValueError, "no complete"),
    "bit flip in a tensor of .pth": (flipped(whole, 0.5), ValueError, "checksum.*is wrong"),
    "bit flip in the pickle of .pth": (flipped(whole, 0.001), ValueError, "checksum|cut short"),
    "bit flip in a safetensors header": (flipped(whole_safetensors, 1e-3), ValueError, "."),
    "a pickle that runs code": (
        filled(pickle.dumps({"network.q.weight": Code()}, protocol=2)),
        ValueError,
        "no PyTorch file of plain weights",
    ),
    "a .pth that runs code": (
        saved(lambda: {"network.q.weight": Code()}),
        ValueError,
        r"asks to run shutil\.copyfile",
    ),
    "a checkpoint with code beside the weights": (
        saved(lambda: {"state_dict": official(oracle("dinov2")), "hyper_parameters": Code()}),
        ValueError,
        r"asks to run shutil\.copyfile",
    ),
    "LightlyTrain's settings hold objects": (
        saved(objects_in_settings),
        ValueError,
        r"exported_last\.pt",
    ),
    "a zip bomb": (bomb, ValueError, "would unpack to 67,"),
    "a tensor that repeats one number": (saved(repeated), ValueError, "network.q.weight.*repeats"),
    "an archive that is no PyTorch file": (
        lambda f: (zipfile.ZipFile(f / "bad", "w").writestr("a", "b"), f / "bad")[1],
        ValueError,
        "cannot be read",
    ),
    "an empty folder": (empty_folder, FileNotFoundError, "holds none of"),
    "a folder with two files": (two_in_folder, FileNotFoundError, "2 other weights files"),
    "a folder without config.json": (without("config.json"), ValueError, "config.json is needed"),
    "a folder without weights": (without("model.safetensors"), FileNotFoundError, "holds none"),
    "config.json is no JSON": (with_json("config.json", "{"), ValueError, "is no JSON"),
    "config.json is a list": (with_json("config.json", "[1]"), ValueError, "is a list"),
    "config.json is of nothing": (with_json("config.json", "{}"), ValueError, "model_type.*None"),
    "config.json nested too deeply": (
        with_json("config.json", '{"a":' * 100_000),
        ValueError,
        "is no JSON",
    ),
    "preprocessor without numbers": (
        with_json("preprocessor_config.json", '{"image_mean": "x"}'),
        ValueError,
        "image_mean in preprocessor_config.json",
    ),
    "a lost shard": (lost_shard, FileNotFoundError, "model-00002-of"),
    "a shard outside of the folder": (shard_outside, ValueError, "outside of its folder"),
    "no weights at all": (saved(lambda: {"a": 1}), ValueError, "holds no tensors"),
    "another network": (
        saved(lambda: {"conv1.weight": torch.zeros(2)}),
        ValueError,
        r"none of the known layouts.*conv1\.weight",
    ),
    "a segmentor of mmseg": (
        saved(lambda: {"state_dict": {"decode_head.x": torch.zeros(1)}}),
        ValueError,
        "without the header",
    ),
    "a missing weight": (
        changed(blocks__1__norm1__bias=None),
        ValueError,
        r"missing \(our names\): \(1\) backbone\.vit\.blocks\.1\.norm1\.bias",
    ),
    "a leftover weight": (
        changed(surprise=torch.zeros(1)),
        ValueError,
        r"left over: \(1\) surprise",
    ),
    "a leftover weight in a block": (
        lambda f: changed(**{"network.encoder.backbone.blocks.0.x": torch.zeros(1)})(f),
        ValueError,
        r"left over: \(1\) network\.encoder\.backbone\.blocks\.0\.x",
    ),
    "a wrong shape": (
        changed(blocks__1__norm1__bias=torch.zeros(7)),
        ValueError,
        r"network\.encoder\.backbone\.blocks\.1\.norm1\.bias \(7,\), expected \(128,\)",
    ),
    "queries without a shape": (changed(network__q__weight=torch.zeros(())), ValueError, "query"),
    "a class head of no class": (
        changed(class_head__weight=torch.zeros(0, 128)),
        ValueError,
        "class_head",
    ),
    "NaN": (
        changed(mask_head__2__weight=nan(128, 128)),
        ValueError,
        r"NaN or infinite values: \(1\) network\.mask_head\.2\.weight",
    ),
    "integers for weights": (
        changed(mask_head__2__bias=torch.zeros(128, dtype=torch.int32)),
        ValueError,
        r"floating point: \(1\) network\.mask_head\.2\.bias torch\.int32",
    ),
    "a block number of a billion": (
        lambda f: changed(**{"network.encoder.backbone.blocks.999999.x": torch.zeros(1)})(f),
        ValueError,
        "not numbered without gaps",
    ),
    "a position table of no square": (
        changed(pos_embed=torch.zeros(1, 7, 128)),
        ValueError,
        "make no square",
    ),
    "delta weights without their base": (delta, ValueError, "DELTA weights"),
    "LightlyTrain's other model": (
        saved(lambda: {**lightly(oracle("dinov2")), "model_class_path": "x.LTDETR"}),
        ValueError,
        "only its EoMT",
    ),
    "LightlyTrain's settings without classes": (
        saved(lambda: lightly(oracle("dinov2"), classes=None)),
        ValueError,
        "classes of .*expected names by id",
    ),
    "LightlyTrain's classes too few": (
        saved(lambda: lightly(oracle("dinov2"), classes={1: "a"})),
        ValueError,
        "class head is for 6 classes",
    ),
    "LightlyTrain's size of no number": (
        saved(lambda: lightly(oracle("dinov3"), image_size=("a", 2))),
        ValueError,
        "image_size is 'a'",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("to", ["mmseg", "hf"])
def test_hostile_file_is_told_and_leaves_nothing(
    kind: str, to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, error, told = HOSTILE[kind]
    source = make(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=f"(?s){told}") as caught:
        mmseg_eomt.convert_checkpoint(source, tmp_path / "out", to=to)
    assert "bad" in str(caught.value), "the message names no file"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not (tmp_path / "pwned").exists()


def test_code_in_lightly_last_ckpt_is_stepped_over_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**lightly(oracle("dinov3")), "train_dataloader": Code()}, tmp_path / "last.ckpt")
    mmseg_eomt.convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "pwned").exists()
    # The same file does run it where it is unpickled.
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("seed", range(20))
def test_bit_flip_in_a_pytorch_file_is_told_or_changes_no_weight(seed: int, tmp_path: Path) -> None:
    place = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    place = place if seed % 2 else 1 - place / 100  # half of them in the index at the end
    good = read_weights(whole(tmp_path))
    try:
        bad = read_weights(flipped(whole, place)(tmp_path))
    except ValueError as error:
        assert "bad" in str(error)
    else:
        assert seed % 2 == 0, "a flip in the tensors passed"
        assert bad.keys() == good.keys()
        assert all(torch.equal(bad[name], value) for name, value in good.items())


def test_failed_conversion_keeps_the_result_of_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    mmseg_eomt.convert_checkpoint(whole(tmp_path), out)
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match="--force"):
        mmseg_eomt.convert_checkpoint(tmp_path / "bad", out)
    with pytest.raises(ValueError, match="left over"):
        mmseg_eomt.convert_checkpoint(changed(surprise=torch.zeros(1))(tmp_path), out, force=True)
    assert out.read_bytes() == before


def test_full_disk_leaves_neither_result_nor_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = whole(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        (tmp_path / ".out.tmp").touch()
        (tmp_path / ".out.tmp").unlink()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmseg_eomt.checkpoints.foreign.hf_export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        mmseg_eomt.convert_checkpoint(source, tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_force_replaces_a_folder_of_ours_and_no_other(tmp_path: Path) -> None:
    source = whole(tmp_path)
    out = tmp_path / "out"
    mmseg_eomt.convert_checkpoint(source, out, to="hf")
    (out / "config.json").write_text("{}")
    mmseg_eomt.convert_checkpoint(source, out, to="hf", force=True)
    assert "model_type" in (out / "config.json").read_text()
    assert load_file(out / "model.safetensors")
    (out / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds thesis\.tex"):
        mmseg_eomt.convert_checkpoint(source, out, to="hf", force=True)
    assert (out / "thesis.tex").exists()
    with pytest.raises(ValueError, match="is the source itself"):
        mmseg_eomt.convert_checkpoint(source, source, force=True)


def test_meta_key_bias_that_acts_is_refused(tmp_path: Path) -> None:
    weights = meta_style(oracle("dinov3"))
    mask = next(name for name in weights if name.endswith("bias_mask"))
    weights[mask] = torch.ones_like(weights[mask])
    torch.save(weights, tmp_path / "bad")
    with pytest.raises(ValueError, match="key has a bias other than zero"):
        mmseg_eomt.convert_checkpoint(tmp_path / "bad", tmp_path / "out")
