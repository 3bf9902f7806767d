"""What a test does with an exported file: run it, and compare it with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.pictures import graph_input, made_pictures, network_input


def run_file(path: Path, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """All outputs of ONNX Runtime, by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def metadata_of(path: Path) -> DeployMetadata:
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return DeployMetadata.from_properties(properties, source=str(path))


def agreement(path: Path, segmentor: Any, *, batch: int, size: tuple[int, int]) -> float:
    """Share of pixels to which the file gives PyTorch's label, on pictures with three classes."""
    metadata = metadata_of(path)
    pictures = made_pictures(batch, size, channels=metadata.model.in_channels)
    labels = run_file(path, graph_input(pictures, metadata))["labels"]
    assert labels.shape == (batch, *size)
    assert labels.dtype == np.int32
    images = torch.from_numpy(network_input(np.stack(pictures), metadata.model))
    with torch.inference_mode():
        scores = segmentor.encode_decode(images, [{} for _ in pictures])
    expected = scores.argmax(1).numpy()
    assert len(np.unique(expected)) >= 3
    if metadata.label_values == "id":
        expected = np.asarray(metadata.model.class_ids)[expected]
    return float((labels == expected).mean())


def check_operators(model: onnx.ModelProto) -> None:
    """Standard operators alone, and none that runtimes stumble over."""
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    operators = {node.op_type for node in model.graph.node}
    assert not {"Einsum", "If", "Loop", "Scan", "Dropout"} & operators
    # TensorRT has no antialiased or cubic Resize with PyTorch's coefficients.
    modes = [
        {attribute.name: attribute for attribute in node.attribute}
        for node in model.graph.node
        if node.op_type == "Resize"
    ]
    assert all(mode["mode"].s == b"linear" for mode in modes)
    assert all("antialias" not in mode or mode["antialias"].i == 0 for mode in modes)
    types = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    expected = {"labels": onnx.TensorProto.INT32, "scores": onnx.TensorProto.FLOAT}
    assert types == {name: expected[name] for name in types}
