"""Triton's own parser reads the configuration, which says what the model does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.tensorrt.record import EngineRecord, Profile, record_path
from mmseg_eomt.deploy.triton import write_model_folder
from tests.deploy.lively import CLASSES, lively_header
from tests.deploy.triton.protocol import MODEL_CONFIG, parsed_config


def shape_of(tensor: Any) -> tuple[str, str, list[int]]:
    return tensor.name, MODEL_CONFIG.DataType.Name(tensor.data_type), list(tensor.dims)


def test_the_folder_is_what_triton_serves(exported: Path, tmp_path: Path) -> None:
    folder = write_model_folder(exported, tmp_path / "models", instances=2)
    assert folder == tmp_path / "models" / "street"
    assert [*(tmp_path / "models").iterdir()] == [folder]
    assert (folder / "1" / "model.onnx").read_bytes() == exported.read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES.values())
    config = parsed_config(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("street", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    assert [shape_of(item) for item in config.input] == [("images", "TYPE_FP32", [3, 32, 32])]
    assert [shape_of(item) for item in config.output] == [
        ("labels", "TYPE_INT32", [32, 32]), ("scores", "TYPE_FP32", [5, 32, 32])
    ]  # fmt: skip
    assert config.output[0].label_filename == "labels.txt"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, MODEL_CONFIG.ModelInstanceGroup.KIND_AUTO)
    for batch, warm_up in zip((1, 8), config.model_warmup, strict=True):
        assert warm_up.batch_size == batch
        ((name, tensor),) = warm_up.inputs.items()
        assert name == "images" and list(tensor.dims) == [3, 32, 32] and tensor.zero_data


def test_the_metadata_travels_unchanged(exported: Path, tmp_path: Path) -> None:
    config = parsed_config(write_model_folder(exported, tmp_path))
    text = config.parameters["mmseg_eomt"].string_value
    properties = {item.key: item.value for item in onnx.load(exported).metadata_props}
    assert text == properties["mmseg_eomt"]


def test_fixed_batches_and_open_sides(whole_bytes: Path, tmp_path: Path) -> None:
    folder = write_model_folder(whole_bytes, tmp_path / "models", name="bytes.v2")
    config = parsed_config(folder)
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert [shape_of(item) for item in config.input] == [("images", "TYPE_UINT8", [2, -1, -1, 3])]
    assert [shape_of(item) for item in config.output] == [
        ("labels", "TYPE_INT32", [2, -1, -1]), ("scores", "TYPE_FP32", [2, 5, -1, -1])
    ]  # fmt: skip
    (warm_up,) = config.model_warmup
    assert warm_up.batch_size == 1
    assert list(warm_up.inputs["images"].dims) == [2, 32, 48, 3]
    text = config.parameters["mmseg_eomt"].string_value
    assert DeployMetadata.from_json(text).model.classes[:2] == ('a "b"', "ü\\")
    # Labels are ids here: line n names id n.
    lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 301 and (lines[3], lines[7], lines[300]) == ('a "b"', "ü\\", "e")
    assert lines.count("") == 296
    with pytest.raises(ValueError, match=r"always takes 2 images.*--dynamic batch"):
        write_model_folder(whole_bytes, tmp_path / "other", max_batch=4)


def engine(path: Path, *, lowest: int = 1, metadata: bool = True) -> Path:
    """A file in an engine's place: the folder needs its record alone."""
    path.write_bytes(b"engine")
    shapes = [(batch, 3, 32, 32) for batch in (lowest, 4, 6)]
    made = DeployMetadata(lively_header(), 32, 32, dynamic=("batch",))
    record = EngineRecord(
        tensorrt="10.9",
        gpu="none",
        profiles={"images": Profile(*shapes)},
        sha256=hashlib.sha256(b"engine").hexdigest(),
        metadata=made if metadata else None,
    )
    record_path(path).write_text(record.to_json())
    return path


def test_engines_take_what_they_were_built_for(tmp_path: Path) -> None:
    path = engine(tmp_path / "street.engine")
    folder = write_model_folder(path, tmp_path / "models")
    assert (folder / "1" / "model.plan").read_bytes() == b"engine"
    config = parsed_config(folder)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 6)
    assert config.instance_group[0].kind == MODEL_CONFIG.ModelInstanceGroup.KIND_GPU
    with pytest.raises(ValueError, match=r"built for batches up to 6, and .* be 7"):
        write_model_folder(path, tmp_path / "other", max_batch=7)
    with pytest.raises(ValueError, match="built for batches of 2 to 6"):
        write_model_folder(engine(tmp_path / "two.engine", lowest=2), tmp_path / "models")
    with pytest.raises(ValueError, match="not built from a model that mmseg_eomt exported"):
        write_model_folder(engine(tmp_path / "x.engine", metadata=False), tmp_path / "models")


def test_weights_beside_the_model_are_copied(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    onnx.save_model(
        model, str(tmp_path / "large.onnx"), save_as_external_data=True, location="large.onnx.data"
    )
    folder = write_model_folder(tmp_path / "large.onnx", tmp_path / "models")
    onnx.checker.check_model(str(folder / "1" / "model.onnx"))
    (tmp_path / "large.onnx.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"large\.onnx\.data: the weights of"):
        write_model_folder(tmp_path / "large.onnx", tmp_path / "models", name="other")


def test_unfit_arguments_leave_nothing(exported: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_model_folder(exported, models)
    (tmp_path / "text.onnx").write_text("nothing")
    for options, error, message in (
        ({}, FileExistsError, "a model of this name"),
        ({"name": "a/b"}, ValueError, "allowed: letters"),
        ({"name": "b", "instances": 0}, ValueError, "instances is 0"),
        ({"name": "b", "max_batch": 0}, ValueError, "max_batch is 0"),
        ({"name": "b", "model": tmp_path / "text.onnx"}, ValueError, "is no ONNX file"),
        ({"name": "b", "model": tmp_path / "none.onnx"}, FileNotFoundError, "no such file"),
        ({"name": "b", "model": tmp_path / "w.pth"}, ValueError, r"ends in \.onnx or \.engine"),
    ):
        arguments: dict[str, Any] = {"model": exported, **options}
        with pytest.raises(error, match=message):
            write_model_folder(arguments.pop("model"), models, **arguments)
    assert [path.name for path in models.iterdir()] == ["street"]
