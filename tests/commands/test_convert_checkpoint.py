"""The tool: what it prints, how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmseg_eomt
from mmseg_eomt.commands import convert_checkpoint
from tests.checkpoints.layouts import lightly, official, oracle_of


@pytest.fixture(name="run")
def _run() -> Any:
    return lambda *arguments: convert_checkpoint.main([str(argument) for argument in arguments])


def test_tool_says_what_it_found_and_what_it_assumed(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(official(oracle_of("dinov3")), tmp_path / "a.bin")
    assert run(tmp_path / "a.bin", tmp_path / "o.safetensors", "--image-size", 64) == 0
    said = capsys.readouterr().out
    assert "from official EoMT." in said
    assert "6 classes, 7 queries, 2 joint blocks, patch 16, image (64, 64)" in said
    assert "Note: The file has no class names" in said
    assert mmseg_eomt.load_model(tmp_path / "o.safetensors").header.num_classes == 6


def test_tool_makes_a_folder_for_transformers(run: Any, tmp_path: Path) -> None:
    torch.save(lightly(oracle_of("dinov2")), tmp_path / "exported_best.pt")
    assert run(tmp_path / "exported_best.pt", tmp_path / "hf", "--to", "hf") == 0
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_wrong_input_is_one_paragraph_and_exit_code_2(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    assert run(tmp_path / "a.bin", tmp_path / "out") == 2
    assert "a.bin' is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
