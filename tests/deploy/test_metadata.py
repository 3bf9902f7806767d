"""What an exported model says about itself survives the way into the file and is checked back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmseg_eomt.deploy.metadata import METADATA_KEY, DeployMetadata, InputSpec
from tests.apis.tiny import tiny_header


def _metadata(**changes: Any) -> DeployMetadata:
    values: dict[str, Any] = {"model": tiny_header(), "height": 32, "width": 48}
    return DeployMetadata(**{**values, **changes})


def test_all_fields_survive_the_file() -> None:
    whole = _metadata(
        batch_size=4,
        dynamic=("batch", "width"),
        precision="int8",
        input=InputSpec(layout="NHWC", dtype="uint8", channel_order="bgr"),
        outputs=("labels",),
        label_values="id",
        windows=False,
        versions={"torch": "2.15"},
    )
    properties = whole.properties()
    assert DeployMetadata.from_properties(properties, source="a.onnx") == whole
    assert json.loads(properties["class_ids"]) == [3, 7, 300]
    assert json.loads(properties["classes"]) == ["road", "sky", "tree"]
    assert json.loads(properties["input_size"]) == [32, 48]
    assert len(json.loads(properties["palette"])) == 3
    assert json.loads(properties["mean"])[0] == 123.675
    assert json.loads(properties["versions"]) == {"torch": "2.15"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, r"x\.onnx: .*'height' is 0; allowed: a positive integer"),
        ({"batch_size": True}, r"'batch_size' is True"),
        ({"dynamic": ["depth"]}, r"'dynamic' is \('depth',\); allowed: some of batch, height"),
        ({"dynamic": "batch"}, r"'dynamic' is 'batch'"),
        ({"dynamic": ["width", "batch"]}, r"in this order"),
        ({"precision": "fp8"}, r"'precision' is 'fp8'; allowed: fp32, fp16, bf16, int8"),
        ({"outputs": []}, r"'outputs' is \(\)"),
        ({"label_values": ["id"]}, r"'label_values' is \['id'\]; allowed: index, id"),
        ({"windows": 1}, r"'windows' is 1"),
        ({"versions": {"torch": 2}}, r"'versions'"),
        ({"input": "images"}, r"x\.onnx: .*'input' is 'images'; allowed: an object"),
        ({"input": {"layout": "NCHW"}}, r"x\.onnx: .*'input' has missing fields \['channel_order'"),
        ({"format_version": 2}, r"x\.onnx: .*format version 2; this mmseg_eomt reads 1"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"model": {}}, r"x\.onnx: model header has format version None"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    values = {**json.loads(_metadata().to_json()), **change}
    with pytest.raises(ValueError, match=message):
        DeployMetadata.from_json(json.dumps(values), source="x.onnx")


def test_a_wrong_input_is_named() -> None:
    values = json.loads(_metadata().to_json())
    values["input"]["dtype"] = "int64"
    with pytest.raises(ValueError, match=r"x\.onnx: .*'input\.dtype' is 'int64'; allowed: float32"):
        DeployMetadata.from_json(json.dumps(values), source="x.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.onnx"):
        DeployMetadata.from_json(text, source="x.onnx")


def test_foreign_files_are_told_apart() -> None:
    with pytest.raises(ValueError, match=rf"a\.onnx: no metadata of mmseg_eomt \('{METADATA_KEY}'"):
        DeployMetadata.from_properties({"author": "x"}, source="a.onnx")
