"""Every precision on a model that was trained: what it costs in mIoU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmseg_eomt

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model trained on made scenes as in the quickstart, and its data file."""
    root = tmp_path_factory.mktemp("trained")
    data = root / "made" / "data.yaml"
    run("make_dataset.py", data.parent)
    steps = ["train_cfg.max_iters=100", "train_cfg.val_interval=100"]
    run(
        "train.py", "configs/eomt/tiny_quickstart.py", "--data", data, "--work-dir", root / "run",
        "--cfg-options", *steps,
    )  # fmt: skip
    return root / "run" / "exported" / "best.safetensors", data


def run(tool: str, *arguments: object) -> None:
    command = [sys.executable, f"tools/{tool}", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_trained_model_keeps_its_miou_in_every_precision(
    tmp_path: Path, trained: tuple[Path, Path], precision: str
) -> None:
    weights, data = trained
    result = mmseg_eomt.export_onnx(
        tmp_path / "m.onnx", checkpoint=weights, data=data, precision=precision, batch_size=4
    )
    assert result.miou is not None
    assert result.miou.reference > 20  # it has learnt something that can be lost
    assert result.miou.drop <= {"fp32": 0.05, "fp16": 0.2, "bf16": 0.5, "int8": 1.0}[precision]
    least = {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.98, "int8": 0.95}[precision]
    assert [item.batch for item in result.comparisons] == [1, 2, 4]
    assert all(item.agreement >= least and item.classes >= 3 for item in result.comparisons)
