from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

from tests.deploy.lively import lively_weights, picture

TOOL = Path(__file__).parents[2] / "tools" / "export.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def test_tool_exports_compares_on_pictures_and_says_only_what_matters(tmp_path: Path) -> None:
    lively_weights(tmp_path / "w.safetensors")
    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        picture((40, 50), seed=seed).save(tmp_path / "pictures" / f"{seed}.png")
    done = run(
        tmp_path / "w.safetensors", "--out", tmp_path / "new" / "m.onnx", "--dynamic", "",
        "--images", tmp_path / "pictures", "--outputs", "labels",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "against PyTorch (fp32)" in lines[0]  # the exporter is quiet
    assert "Compared on 2 pictures of" in done.stdout
    assert lines[-1] == f"Exported to {tmp_path / 'new' / 'm.onnx'}."
    model = onnx.load(tmp_path / "new" / "m.onnx")
    assert [output.name for output in model.graph.output] == ["labels"]


def test_tool_ends_with_one_paragraph_for_a_wrong_argument(tmp_path: Path) -> None:
    lively_weights(tmp_path / "w.safetensors")
    done = run(tmp_path / "w.safetensors", "--out", tmp_path / "m.onnx", "--height", 3)
    assert done.returncode == 2
    assert "Error: height is 3; allowed: an integer from 8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.onnx").exists()
