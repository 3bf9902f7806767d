"""From a checkpoint through MMDeploy to label maps and mIoU, as `tools/deploy.py` does it."""

from __future__ import annotations

import functools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from mmengine.config import Config
from PIL import Image

from mmseg_eomt import load_model
from mmseg_eomt.apis.deploy import deploy, measure_deployed
from mmseg_eomt.checkpoints.weights_file import read_header
from tests.deploy.lively import CLASSES, lively_config, lively_weights, picture

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "deploy"
SIZE = (40, 58)  # of pictures: two windows of 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of both families, their configs, and a picture."""
    root = tmp_path_factory.mktemp("route")
    for family in ("dinov2", "dinov3"):
        lively_weights(root / f"{family}.safetensors", family)
        lively_config(family).dump(root / f"{family}.py")
    picture(SIZE).save(root / "picture.png")
    return root


def plan(folder: Path, base: str, text: str = "") -> Path:
    path = folder / f"plan_{base}.py"
    path.write_text(f"_base_ = [{str(CONFIGS / f'segmentation{base}.py')!r}]\n{text}\n")
    return path


STATIC = "onnx_config = dict(input_shape=[32, 32])"


@functools.cache  # tests only read what came out
def run(folder: Path, base: str, text: str = "", *, family: str = "dinov3") -> Any:
    return deploy(
        plan(folder, base, text),
        folder / f"{family}.py",
        folder / f"{family}.safetensors",
        folder / "picture.png",
        work_dir=folder / f"out_{base}_{family}",
    )


@pytest.mark.parametrize(
    ("family", "base", "text"),
    [
        ("dinov2", "_onnxruntime_dynamic", ""),
        ("dinov3", "_onnxruntime_dynamic-batch-512x512", STATIC),
        ("dinov3", "_onnxruntime-fp16_static-512x512", STATIC),
    ],
)
def test_labels_are_those_of_pytorch(family: str, base: str, text: str, folder: Path) -> None:
    done = run(folder, base, text, family=family)
    fp16 = "fp16" in base
    assert done.agreement >= (0.99 if fp16 else 0.9999)
    model = load_model(folder / f"{family}.safetensors", device="cpu")
    assert len(np.unique(model.predict(folder / "picture.png"))) >= 3
    names = {path.name for path in done.files}
    assert names >= {
        *("end2end.onnx", "deploy.json", "pipeline.json", "detail.json", "model_config.py"),
        *("output_pytorch.jpg", "output_onnxruntime.jpg"),
    }
    assert {path.name for path in done.model.parent.iterdir()} == names  # nothing half-written
    with Image.open(done.model.parent / "output_pytorch.jpg") as painted:
        assert painted.size == (SIZE[1], SIZE[0])
    graph = onnx.load(done.model)
    operators = {node.op_type for node in graph.graph.node}
    assert "LayerNormalization" in operators
    assert not operators & {"If", "Dropout", "Einsum"}, operators
    assert {node.domain for node in graph.graph.node} == {""}
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.graph.initializer) == fp16


def test_a_dynamic_graph_takes_any_size(folder: Path) -> None:
    done = run(folder, "_onnxruntime_dynamic", family="dinov2")
    session = onnxruntime.InferenceSession(done.model, providers=["CPUExecutionProvider"])
    segmentor = load_model(folder / "dinov2.safetensors", device="cpu").segmentor
    for shape in ((1, 3, 32, 48), (2, 3, 33, 50), (3, 3, 71, 40)):
        images = torch.randn(*shape)
        with torch.inference_mode():
            expected = segmentor.encode_decode(images, [{}] * shape[0]).numpy()
        (found,) = session.run(None, {"input": images.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_files_of_the_sdk_say_what_there_is(folder: Path) -> None:
    done = run(folder, "_onnxruntime-fp16_static-512x512", STATIC)
    about = json.loads((done.model.parent / "deploy.json").read_text())
    assert about["models"][0]["net"] == "end2end.onnx"
    detail = json.loads((done.model.parent / "detail.json").read_text())
    assert detail["onnx_config"]["opset_version"] == 17
    pipeline = json.loads((done.model.parent / "pipeline.json").read_text())["pipeline"]
    steps = {task["name"]: task for task in pipeline["tasks"]}
    transforms = steps["Preprocess"]["transforms"]
    assert {step["type"] for step in transforms} >= {"LoadImageFromFile", "Resize", "Normalize"}
    (normalise,) = [step for step in transforms if step["type"] == "Normalize"]
    assert normalise["mean"] == [123.675, 116.28, 103.53] and normalise["to_rgb"] is True
    (resize,) = [step for step in transforms if step["type"] == "Resize"]
    assert resize["size"] == [32, 32]
    head = pipeline["tasks"][-1]
    assert head["type"] == "Task" and head["params"]["num_classes"] == len(CLASSES)


def test_labels_come_out_as_int32(folder: Path) -> None:
    done = run(folder, "-labels_onnxruntime_static-512x512", STATIC)
    session = onnxruntime.InferenceSession(done.model, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    assert (output.type, output.shape) == ("tensor(int32)", [1, 1, 32, 32])
    assert done.agreement > 0.8  # nearest labels, and seams in place of averages


def test_miou_is_that_of_the_checkpoint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "val" / name).mkdir(parents=True)
    for index in range(5):
        picture((33 + index, 52), seed=index).save(folder / "val" / "images" / f"{index}.png")
        labels = rng.choice(np.array(list(CLASSES), np.uint16), (33 + index, 52))
        Image.fromarray(labels).save(folder / "val" / "masks" / f"{index}.png")
    split = {"images": "val/images", "masks": "val/masks"}
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"train": split, "val": split, "classes": dict(CLASSES)}))
    done = run(folder, "_onnxruntime_dynamic", family="dinov2")
    metrics = measure_deployed(
        plan(folder, "_onnxruntime_dynamic"),
        done.model.parent / "model_config.py",
        done.model,
        work_dir=folder / "test",
        data=str(data),
        show_dir=str(folder / "painted"),
    )
    main = runpy.run_path(str(ROOT / "tools" / "test.py"))["main"]
    capfd.readouterr()
    arguments = [folder / "dinov2.py", folder / "dinov2.safetensors", "--data", data]
    head = ["model.decode_head.num_queries=8", "model.decode_head.num_upscale_blocks=1"]
    arguments += ["--work-dir", folder / "pytorch", "--cfg-options", *head]
    arguments += ["model.backbone.num_joint_blocks=1", "model.backbone.image_size=32"]
    assert main([str(argument) for argument in arguments]) == 0
    expected = float(re.findall(r"mIoU: (\d+\.\d+)", capfd.readouterr().out)[-1])
    assert metrics["mIoU"] == pytest.approx(expected, abs=1e-3)
    assert metrics["mIoU"] > 5
    assert len(list((folder / "painted").rglob("*.png"))) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "none.png"}, r"none\.png: no such file \(image\)"),
        ({"checkpoint": "dinov2.safetensors"}, "is a DINOv2 .* but the config describes a DINOv3"),
        ({"work_dir": "picture.png"}, "cannot be written .*--work-dir"),
        ({"deploy_cfg": "dinov3.py"}, "no deploy config"),
    ],
)
def test_faults_are_named(
    change: dict[str, str], message: str, folder: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "deploy_cfg": plan(folder, "_onnxruntime_dynamic"),
        "model_cfg": folder / "dinov3.py",
        "checkpoint": folder / "dinov3.safetensors",
        "image": folder / "picture.png",
        "work_dir": tmp_path / "out",
        **{name: folder / value for name, value in change.items()},
    }
    places = ("deploy_cfg", "model_cfg", "checkpoint", "image")
    with pytest.raises((ValueError, OSError), match=message):
        deploy(*(arguments[name] for name in places), work_dir=arguments["work_dir"])
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("onnx_config = dict(opset_version=11)", "opset_version is 11: give 17 or more"),
        ("codebase_config = dict(module=[])", "codebase_config.module"),
        ("backend_config = dict(type='ncnn')", "'ncnn'; allowed: onnxruntime, tensorrt"),
        ("backend_config = dict(precision='int8')", "'int8'; allowed: fp32, fp16"),
    ],
)
def test_a_deploy_config_that_cannot_be_is_refused(
    change: str, message: str, folder: Path, tmp_path: Path
) -> None:
    path = plan(tmp_path, "_onnxruntime_dynamic", change)
    files = (path, folder / "dinov3.py", folder / "dinov3.safetensors", folder / "picture.png")
    with pytest.raises(ValueError, match=message):
        deploy(*files, work_dir=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_checkpoint_of_mmsegmentation_is_deployed_like_lean_weights(
    folder: Path, tmp_path: Path
) -> None:
    """It has no header: the config says what the file does not."""
    header = read_header(folder / "dinov2.safetensors")
    segmentor = load_model(folder / "dinov2.safetensors", device="cpu").segmentor
    meta = {"classes": header.classes, "palette": header.palette}
    stored = {"state_dict": segmentor.state_dict(), "meta": {"dataset_meta": meta}}
    torch.save(stored, tmp_path / "iter_10.pth")
    cfg = Config.fromfile(folder / "dinov2.py")
    cfg.model.backbone.image_size = 32
    cfg.model.backbone.num_joint_blocks = header.num_joint_blocks
    cfg.model.decode_head.num_queries = header.num_queries
    cfg.model.decode_head.num_upscale_blocks = header.num_upscale_blocks
    cfg.dump(tmp_path / "model.py")
    done = deploy(
        plan(tmp_path, "_onnxruntime_dynamic"),
        tmp_path / "model.py",
        tmp_path / "iter_10.pth",
        folder / "picture.png",
        work_dir=tmp_path / "out",
    )
    assert done.agreement == 1
    lean = run(folder, "_onnxruntime_dynamic", family="dinov2")
    images = torch.randn(1, 3, 40, 40).numpy()
    results = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"input": images}
        )[0]
        for path in (done.model, lean.model)
    ]
    np.testing.assert_allclose(*results, atol=1e-6)


def test_a_window_of_another_size_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"takes 48x64 pixels .* windows of 32x32"):
        run(folder, "_onnxruntime_static-512x512", "onnx_config = dict(input_shape=[64, 48])")


def test_a_missing_mmdeploy_is_named_with_both_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mmdeploy" else found(name)
    )
    command = r"pip install --no-deps mmdeploy==1\.3\.1 && pip install aenum"
    with pytest.raises(ImportError, match=command):
        run(folder, "_onnxruntime-fp16_dynamic")
