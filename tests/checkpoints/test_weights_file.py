"""Lean weights: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.checkpoints.weights_file import (
    load_weights,
    read_header,
    read_weights,
    save_weights,
)
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from tests.apis.tiny import tiny_header


def test_header_survives_json() -> None:
    header = tiny_header(backbone_args={"registers": True}, versions={"torch": "2"})
    assert ModelHeader.from_json(header.to_json()) == header


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "resnet"),
        ("architecture", "hf-hub:someone/model"),
        ("patch_size", 0),
        ("image_size", [32]),
        ("num_queries", True),
        ("classes", []),
        ("class_ids", [1, 1, 2]),
        ("palette", [[0, 0, 0], [0, 0, 256], [1, 1, 1]]),
        ("mean", [1.0, 2.0]),
        ("std", [1.0, 0.0, 1.0]),
        ("test_mode", "slide"),
        ("backbone_args", {"pretrained": "http://example.org/x"}),
        ("format_version", 99),
        ("surprise", 1),
    ],
)
def test_wrong_header_field_is_named(field: str, value: Any) -> None:
    values = json.loads(tiny_header().to_json())
    values[field] = value
    with pytest.raises(ValueError, match=field.replace("_", "[ _]")) as caught:
        ModelHeader.from_json(json.dumps(values), source="some.safetensors")
    assert "some.safetensors" in str(caught.value)


def test_weights_come_back_bit_equal_and_hold_parameters_only(tmp_path: Path) -> None:
    header = tiny_header()
    model, other = build_segmentor(header), build_segmentor(header)
    path = tmp_path / "w.safetensors"
    save_weights(path, model, header)
    assert load_weights(other, path) == header
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    stored = sum(t.numel() for t in read_weights(path)[1].values())
    assert stored == sum(p.numel() for p in model.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_are_readable_by_whoever_may_read_files_here(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, tiny_header())
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("w.safetensors", "plain")]
    assert modes[0] == modes[1]


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(2)}, tiny_header())
    before = path.read_bytes()
    with pytest.raises(Exception, match="complex128"):
        save_weights(path, {"a": torch.zeros(2, dtype=torch.complex128)}, tiny_header())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_misfit_lists_keys_and_shapes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, build_segmentor(tiny_header()), tiny_header())
    other = build_segmentor(tiny_header(num_queries=9))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"decode_head.query.weight: \(4, 16\) in the file, \(9"):
        load_weights(other, path)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


def test_training_checkpoint_with_header_loads(tmp_path: Path) -> None:
    header = tiny_header()
    state = build_segmentor(header).state_dict()
    torch.save({"state_dict": state, HEADER_KEY: header.to_json()}, tmp_path / "iter_1.pth")
    assert read_header(tmp_path / "iter_1.pth") == header


class _Code:
    def __reduce__(self) -> Any:
        return (Path("pwned").touch, ())


@pytest.mark.parametrize("kind", ["pickle", "zeros", "truncated", "empty", "no header", "folder"])
def test_hostile_files_are_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": _Code()}))
    elif kind == "zeros":
        path.write_bytes(bytes(100))
    elif kind == "truncated":
        save_weights(path, build_segmentor(tiny_header()), tiny_header())
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.touch()
    elif kind == "no header":
        torch.save({"state_dict": {}}, path)
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)
    assert not (tmp_path / "pwned").exists()
