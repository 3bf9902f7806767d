"""Every precision on a model that was trained: what it costs in mIoU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmseg_eomt
from tests.apis.tiny import FEW_FILES, tiny_call

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model trained for a minute on made scenes, and its data file."""
    root = tmp_path_factory.mktemp("trained")
    tool = [sys.executable, str(ROOT / "tools" / "make_dataset.py"), str(root / "made")]
    subprocess.run([*tool, "--images", "60", "--val", "16"], check=True, capture_output=True)
    call = tiny_call(
        root / "made" / "data.yaml", out=root / "run", steps=300, batch_size=8,
        transform_args={"image_size": 64}, **FEW_FILES,
    )  # fmt: skip
    call["model_args"].update(
        arch={"embed_dims": 48, "depth": 4, "num_heads": 3, "patch_size": 8},
        num_queries=20, num_points=512,
    )  # fmt: skip
    mmseg_eomt.train_semantic_segmentation(**call)
    return root / "run" / "exported" / "last.safetensors", root / "made" / "data.yaml"


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
