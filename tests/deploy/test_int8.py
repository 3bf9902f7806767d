"""int8 for Linear layers: where it is, how outliers are evened out, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser

from mmseg_eomt import export_onnx
from mmseg_eomt.deploy import int8
from mmseg_eomt.deploy.int8 import quantize_linears
from mmseg_eomt.deploy.onnx_graph import (
    Graph,
    Sample,
    array_of,
    channel_magnitudes,
    session_of,
    stored_bytes,
)
from mmseg_eomt.deploy.pictures import graph_input, made_pictures
from mmseg_eomt.deploy.smoothquant import linear_layers, smooth
from tests.deploy.exporting import metadata_of
from tests.deploy.lively import lively_weights
from tests.deploy.small_graphs import block, pictures

Exported = tuple[onnx.ModelProto, list[Sample]]


@pytest.fixture(scope="module", params=["dinov2", "dinov3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny model with outliers: single channels 50 times as large as others, as in large ViTs."""
    folder: Path = tmp_path_factory.mktemp("int8")
    lively_weights(folder / "w.safetensors", request.param)
    path = folder / "m.onnx"
    export_onnx(
        path, checkpoint=folder / "w.safetensors", height=48, width=64, dynamic="", verify=False
    )
    model, metadata = onnx.load(path), metadata_of(path)
    shown = made_pictures(6, (48, 64), channels=3)
    _plant_outliers(model)
    return model, [{metadata.input.name: graph_input([item], metadata)} for item in shown]


def _plant_outliers(model: onnx.ModelProto) -> None:
    """Large channels after each norm of the first blocks, read by small weights."""
    graph = Graph(model)
    for node in graph.nodes:
        readers = [graph.nodes[index] for index in graph.consumers.get(node.output[0], [])]
        if node.op_type != "LayerNormalization" or len(readers) != 1:
            continue
        if readers[0].op_type == "Reshape":  # a static batch: matrices instead of batches of them
            readers = [graph.nodes[index] for index in graph.consumers[readers[0].output[0]]]
        if readers[0].op_type in ("MatMul", "Gemm"):
            rows = readers[0]
            transposed = any(item.name == "transB" and item.i for item in rows.attribute)
            for owner, slot, factor in ((node, 1, 50), (node, 2, 50), (rows, 1, 1 / 50)):
                array = array_of(graph.initialisers[owner.input[slot]]).copy()
                array[(slice(None), 3) if owner is rows and transposed else 3] *= factor
                name = f"{owner.input[slot]}_outlier_{owner.output[0]}"
                model.graph.initializer.append(numpy_helper.from_array(array, name))
                owner.input[slot] = name


def run(model: onnx.ModelProto, sample: Sample) -> list[NDArray[Any]]:
    with session_of(model) as session:
        outputs: list[NDArray[Any]] = session.run(["labels", "scores"], sample)
        return outputs


def test_smoothing_leaves_the_float32_model_as_it_is(exported: Exported) -> None:
    model, samples = exported
    before = model.SerializeToString()
    smoothed = smooth(model, samples)
    assert model.SerializeToString() == before
    assert len(smoothed.graph.node) == len(model.graph.node)
    changed = {tensor.name for tensor in smoothed.graph.initializer if "_smooth_" in tensor.name}
    assert len(changed) >= 12
    for sample in samples:
        labels, scores = run(model, sample)
        found_labels, found_scores = run(smoothed, sample)
        assert np.abs(found_scores - scores).max() <= 1e-5 * scores.max()
        assert (found_labels == labels).mean() >= 0.9999


def test_smoothing_evens_out_channels_of_norms_and_values(exported: Exported) -> None:
    model, samples = exported
    smoothed = smooth(model, samples)
    layers = linear_layers(Graph(model))
    graph = Graph(model)
    widths = {layer.source: len(layer.matrix(graph)) for layer in layers}

    def spread(of: onnx.ModelProto) -> dict[str, float]:
        found = channel_magnitudes(of, widths, samples)
        return {name: float(value.max() / np.median(value)) for name, value in found.items()}

    before, after = spread(model), spread(smoothed)
    outliers = [name for name in before if before[name] > 15]
    assert len(outliers) >= 4
    assert all(after[name] < before[name] / 3 for name in outliers)
    # The output projections read what a Reshape joined; their values were changed in the layer
    # that makes them.
    joined = [name for name in widths if graph.nodes[graph.producer[name]].op_type == "Reshape"]
    first = channel_magnitudes(model, widths, samples)
    second = channel_magnitudes(smoothed, widths, samples)
    assert any(not np.allclose(first[name], second[name], rtol=0.01) for name in joined)


def _reads_attention(graph: Graph, name: str) -> bool:
    node = graph.nodes[graph.producer[name]]
    while node.op_type in ("Reshape", "Transpose"):
        node = graph.nodes[graph.producer[node.input[0]]]
    return node.op_type == "MatMul" and node.input[1] not in graph.initialisers


def test_smoothing_saves_a_layer_that_reads_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    mlp (float[64,32] x) => (float[64,16] y) {
        normed = LayerNormalization <axis = -1> (x, scale, shift)
        y = MatMul(normed, weight)
    }
    """
    rng = np.random.default_rng(0)
    scale, shift = np.ones(32), rng.standard_normal(32)
    weight = rng.standard_normal((32, 16))
    scale[5], shift[5], weight[5] = 100, 100, weight[5] / 100
    model = parser.parse_model(text)
    for name, array in (("scale", scale), ("shift", shift), ("weight", weight)):
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    samples = [{"x": rng.standard_normal((64, 32)).astype(np.float32)} for _ in range(4)]

    def loss() -> float:
        quantised = quantize_linears(model, samples)
        with session_of(model) as before, session_of(quantised) as after:
            (expected,), (found,) = (each.run(None, samples[0]) for each in (before, after))
        return float(np.abs(found - expected).mean() / np.abs(expected).mean())

    with_it = loss()
    monkeypatch.setattr(int8, "smooth", lambda model, samples: model)
    assert with_it < 0.03
    assert loss() > 5 * with_it


def test_quantised_model_agrees_with_the_float32_one(exported: Exported) -> None:
    model, samples = exported
    quantised = quantize_linears(model, samples[:3])
    found = [(run(model, sample), run(quantised, sample)) for sample in samples]
    assert np.mean([(a[0] == b[0]).mean() for a, b in found]) > 0.97
    largest = max(a[1].max() for a, _ in found)
    errors = [np.abs(a[1] - b[1]).mean() / largest for a, b in found]
    assert 0 < np.mean(errors) < 5e-3


def test_only_linear_layers_are_quantised(exported: Exported) -> None:
    model, samples = exported
    quantised = quantize_linears(model, samples)
    onnx.checker.check_model(quantised, full_check=True)
    assert list(quantised.graph.input) == list(model.graph.input)
    assert list(quantised.graph.output) == list(model.graph.output)
    assert {node.domain for node in quantised.graph.node} <= {"", "ai.onnx"}
    assert stored_bytes(quantised) < 0.6 * stored_bytes(model)  # tiny: norms and tables weigh
    graph = Graph(quantised)
    readers = {
        graph.nodes[index].op_type
        for node in graph.nodes
        if node.op_type == "DequantizeLinear"
        for index in graph.consumers[node.output[0]]
    }
    assert readers <= {"MatMul", "Gemm"}
    linear = len(linear_layers(Graph(model)))
    stored = [node for node in graph.nodes if node.input[0] in graph.initialisers
              and node.op_type == "DequantizeLinear"]  # fmt: skip
    assert linear - 2 <= len(stored) <= linear
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = array_of(graph.initialisers[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()


@pytest.mark.parametrize(("scale", "kept"), [(0.0, False), (20.0, True)])
def test_class_head_stays_float32_if_it_is_sensitive(scale: float, kept: bool) -> None:
    weight = scale * np.random.default_rng(5).standard_normal((8, 4))
    model = block(class_weight=weight)
    assert [layer.weight for layer in linear_layers(Graph(model)) if layer.last] == ["class_weight"]
    quantised = quantize_linears(model, [pictures(seed=seed) for seed in range(4)])
    assert (Graph(quantised).types[_weight_of_classes(quantised)] == TensorProto.FLOAT) is kept


def _weight_of_classes(model: onnx.ModelProto) -> str:
    """What is stored as the matrix of the class head."""
    graph = Graph(model)
    name = graph.nodes[graph.producer["classes"]].input[1]
    maker = graph.producer.get(name)
    return name if maker is None else graph.nodes[maker].input[0]


def test_gemm_with_a_transposed_matrix_is_quantised() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    gemm (float[4,8] x) => (float[4,6] y) { y = Gemm <transB = 1> (x, weight, bias) }
    """
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("weight", (6, 8)), ("bias", (6,))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    sample = {"x": rng.standard_normal((4, 8)).astype(np.float32)}
    quantised = quantize_linears(model, [sample])
    with session_of(model) as before, session_of(quantised) as after:
        (expected,), (found,) = before.run(None, sample), after.run(None, sample)
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match="samples is empty"):
        quantize_linears(block(), [])
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    with pytest.raises(ValueError, match="no Linear layer"):
        quantize_linears(model, [{"x": np.ones(2, np.float32)}])
