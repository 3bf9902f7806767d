"""An exported model scores what `tools/test.py` says of the checkpoint."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from mmseg_eomt import export_onnx
from tests.apis.tiny import ARCH, make_data
from tests.deploy.lively import lively_weights

ROOT = Path(__file__).parents[2]
CLASSES = {3: "road", 7: "sky", 300: "tree"}


def run(tool: str, *arguments: str | Path) -> int:
    main = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]
    code: int = main([str(argument) for argument in arguments])
    return code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(make_data(tmp_path / "data", images=3)))
    three = {
        "classes": tuple(CLASSES.values()),
        "class_ids": tuple(CLASSES),
        "palette": ((1, 2, 3),) * 3,
    }
    lively_weights(tmp_path / "w.safetensors", **three)
    export_onnx(tmp_path / "w.onnx", checkpoint=tmp_path / "w.safetensors", verify=False)
    return tmp_path


def test_miou_is_that_of_the_checkpoint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("test_deployed", folder / "w.onnx", "--data", folder / "data.yaml") == 0
    (found,) = re.findall(r"mIoU (\d+\.\d+) on 3 images", capfd.readouterr().out)
    base = ROOT / "configs" / "eomt" / "dinov3_vits16_folder.py"
    (folder / "tiny.py").write_text(
        f"_base_ = [{str(base)!r}]\n"
        f"model = dict(backbone=dict(arch=dict(_delete_=True, **{ARCH!r}), image_size=32,\n"
        "    num_joint_blocks=1, pretrained=None), decode_head=dict(num_queries=8,\n"
        "    num_upscale_blocks=1))\n"
        "test_dataloader = dict(num_workers=0, persistent_workers=False)\n"
    )
    options = ["--cfg-options", "test_dataloader.dataset.pipeline.1.size=32"]
    arguments = [folder / "tiny.py", folder / "w.safetensors", "--data", folder / "data.yaml"]
    assert run("test", *arguments, "--work-dir", folder / "test", *options) == 0
    expected = re.findall(r"mIoU: (\d+\.\d+)", capfd.readouterr().out)[-1]
    assert abs(float(found) - float(expected)) < 0.02
    assert float(found) > 1  # pixels are counted


def test_another_dataset_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load((folder / "data.yaml").read_text())
    data["classes"][7] = "sea"
    (folder / "other.yaml").write_text(yaml.safe_dump(data))
    assert run("test_deployed", folder / "w.onnx", "--data", folder / "other.yaml") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "other classes than the model" in error and "'sea'" in error and "'sky'" in error
