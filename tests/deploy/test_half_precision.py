"""Half precision in the graph: where it is, where it is not, and what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, parser
from onnx.reference import ReferenceEvaluator

from mmseg_eomt.deploy.half_precision import DTYPES, convert_precision
from mmseg_eomt.deploy.onnx_graph import Graph, largest_magnitudes, session_of, stored_bytes
from mmseg_eomt.deploy.verify import emulate_bf16
from tests.deploy.small_graphs import block, pictures

FLOAT = TensorProto.FLOAT
# What stays float32 in `block`, by the name of the result.
KEPT = {
    *("centred", "pixels"),  # before the first learned layer
    *("end", "places", "column", "angles", "sine", "cosine"),  # position tables
    *("turned", "swapped", "aside", "rotated"),  # rotary embedding
    *("normed", "normed2", "features", "attention"),
    *("scaled", "error", "raised", "share"),  # around Erf
    *("large", "likely", "named", "chances", "kept", "scores"),  # after the last learned layer
}


def run(model: onnx.ModelProto, sample: dict[str, Any]) -> list[Any]:
    with session_of(model) as session:
        outputs: list[Any] = session.run(None, sample)
        return outputs


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return Graph(model).types


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_operators_are_low_or_float32_as_the_rules_say(dtype: str) -> None:
    model = block(opset=22)
    types = types_of(convert_precision(model, dtype=dtype, samples=[pictures()]))
    made = {name for node in model.graph.node for name in node.output}
    floats = {name for name in made if types_of(model)[name] == FLOAT}
    assert {name for name in floats if types[name] == FLOAT} == KEPT
    assert {types[name] for name in floats - KEPT} == {DTYPES[dtype]}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_graph_is_valid_and_agrees_with_float32(dtype: str) -> None:
    model = block(opset=22)
    before = model.SerializeToString()
    converted = convert_precision(model, dtype=dtype, samples=[pictures()])
    assert model.SerializeToString() == before
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.input) == list(model.graph.input)
    assert list(converted.graph.output) == list(model.graph.output)
    assert stored_bytes(converted) < 0.7 * stored_bytes(model)  # tables and norms stay
    runnable = emulate_bf16(converted) if dtype == "bf16" else converted
    for batch in (1, 3):
        sample = pictures(batch=batch, seed=2)
        (labels, scores), (low_labels, low_scores) = run(model, sample), run(runnable, sample)
        assert np.abs(low_scores - scores).max() < {"fp16": 5e-3, "bf16": 4e-2}[dtype]
        assert not np.array_equal(low_scores, scores)
        assert (low_labels == labels).mean() > {"fp16": 0.99, "bf16": 0.95}[dtype]


def test_no_value_is_cast_twice_nor_there_and_back() -> None:
    graph = Graph(convert_precision(block(), dtype="fp16", samples=[pictures()]))
    casts = [node for node in graph.nodes if node.op_type == "Cast"]
    keys = [(node.input[0], node.attribute[0].i) for node in casts]
    assert len(set(keys)) == len(keys)
    for node in casts:
        source = graph.producer.get(node.input[0])
        chain = source is not None and graph.nodes[source].op_type == "Cast"
        assert not chain, f"{node.input[0]} is cast, then cast again"
    assert not any(node.input[0] in graph.initialisers for node in casts)


def test_output_made_in_half_precision_keeps_name_and_type() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        two (float[2,4] x) => (float[2,4] y, float[2,4] z)
        <float[4] w = {0.1, 0.2, 0.3, 0.4}, float[4,4] m = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0,
         1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5}>
        { y = MatMul(x, m)  z = Mul(y, w) }"""
    )
    sample = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    converted = convert_precision(model, dtype="fp16", samples=[sample])
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.output) == list(model.graph.output)
    for low, full in zip(run(converted, sample), run(model, sample), strict=True):
        assert low.dtype == np.float32
        np.testing.assert_allclose(low, full, rtol=5e-3, atol=5e-3)


def test_values_beyond_float16_stay_float32() -> None:
    # The hidden layer reaches 1e5: in float16 it would be infinite and the scores NaN.
    up = np.full((8, 32), 4e4)
    model = block(up_weight=up, down_weight=np.full((32, 8), 1e-5))
    samples = [pictures()]
    assert largest_magnitudes(model, ["hidden"], samples)["hidden"] > 65504
    converted = convert_precision(model, dtype="fp16", samples=samples)
    types = types_of(converted)
    assert {types[name] for name in ("hidden", "active", "down")} == {FLOAT}
    assert types["query"] == TensorProto.FLOAT16
    (labels, scores), (low_labels, low_scores) = run(model, samples[0]), run(converted, samples[0])
    assert np.abs(low_scores - scores).max() < 5e-3
    assert (low_labels == labels).mean() > 0.99
    # bfloat16 has the range.
    assert types_of(convert_precision(model, dtype="bf16", samples=samples))["hidden"] != FLOAT


@pytest.mark.parametrize(
    ("weights", "why"), [(1e5, "overflow"), (1e-7, "underflow")], ids=["overflow", "underflow"]
)
def test_weights_that_do_not_fit_stay_float32(weights: float, why: str) -> None:
    rng = np.random.default_rng(0)
    model = block(query_weight=rng.standard_normal((8, 8)) * weights)
    converted = convert_precision(model, dtype="fp16", samples=[pictures()])
    stored = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert stored["query_weight"] == FLOAT, why
    assert stored["value_weight_fp16"] == TensorProto.FLOAT16
    assert types_of(converted)["query"] == FLOAT


@pytest.mark.parametrize(("opset", "kind"), [(18, FLOAT), (22, TensorProto.BFLOAT16)])
def test_bfloat16_convolution_needs_opset_22(opset: int, kind: int) -> None:
    converted = convert_precision(block(opset=opset), dtype="bf16", samples=[pictures()])
    onnx.checker.check_model(converted, full_check=True)
    assert types_of(converted)["patches"] == kind


def test_emulated_bfloat16_is_what_the_reference_computes() -> None:
    converted = convert_precision(block(), dtype="bf16", samples=[pictures()])
    emulated = emulate_bf16(converted)
    assert TensorProto.BFLOAT16 not in {tensor.data_type for tensor in emulated.graph.initializer}
    sample = pictures(seed=3)
    labels, scores = ReferenceEvaluator(converted).run(None, sample)
    rounding = np.abs(run(block(), sample)[1] - scores).mean()
    assert rounding > 1e-4
    for optimise in (False, True):  # ONNX Runtime must not take the rounding for nothing
        with session_of(emulated, optimise=optimise) as session:
            found_labels, found_scores = session.run(None, sample)
        # Sums in another order: a value may round to its neighbour.
        assert np.abs(found_scores - scores).mean() < rounding / 5
        assert (found_labels == labels).mean() > 0.98


def test_tables_of_large_angles_are_right() -> None:
    # Angles up to 1500 radians: float16 knows them to half a radian.
    model = block(frequencies=np.full((1, 8), 100.0))
    samples = [pictures()]
    converted = convert_precision(model, dtype="fp16", samples=samples)
    full, low = run(model, samples[0]), run(converted, samples[0])
    assert np.abs(low[1] - full[1]).max() < 5e-3


def test_constant_nodes_are_stored_like_weights() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        one (float[2,2] x) => (float[2,2] y)
        { w = Constant <value = float[2,2] {1.0, 2.0, 3.0, 4.0}> ()  y = MatMul(x, w) }"""
    )
    sample = {"x": np.eye(2, dtype=np.float32)}
    converted = convert_precision(model, dtype="fp16", samples=[sample])
    assert [node.op_type for node in converted.graph.node] == ["Cast", "MatMul", "Cast"]
    np.testing.assert_array_equal(run(converted, sample)[0], [[1, 2], [3, 4]])


def test_values_that_a_subgraph_reads_stay_float32() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        branch (float[2,2] x, bool c) => (float[2,2] y)
        <float[2,2] w = {1.0, 2.0, 3.0, 4.0}>
        {
            a = MatMul(x, w)
            y = If (c) <then_branch = then () => (float[2,2] t) { t = Neg(a) },
                        else_branch = other () => (float[2,2] e) { e = Identity(a) }>
        }"""
    )
    sample = {"x": np.eye(2, dtype=np.float32), "c": np.array(True)}
    converted = convert_precision(model, dtype="fp16", samples=[sample])
    onnx.checker.check_model(converted, full_check=True)
    np.testing.assert_array_equal(run(converted, sample)[0], [[-1, -2], [-3, -4]])


def test_wrong_input_is_named() -> None:
    model = block()
    with pytest.raises(ValueError, match=r"dtype is 'fp8': choose one of \['fp16', 'bf16'\]"):
        convert_precision(model, dtype="fp8", samples=[pictures()])
    with pytest.raises(ValueError, match="samples is empty"):
        convert_precision(model, dtype="fp16", samples=[])
    broken = pictures()
    broken["images"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite on the samples, 'pixels' first"):
        convert_precision(model, dtype="fp16", samples=[broken])


def test_magnitudes_are_the_largest_over_all_samples() -> None:
    model = block()
    samples = [pictures(seed=seed) for seed in (1, 2)]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for name in ("products", "residual"):
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, None))
    found = largest_magnitudes(model, ["products", "residual"], samples)
    for place, name in ((2, "products"), (3, "residual")):
        expected = max(np.abs(run(exposed, sample)[place]).max() for sample in samples)
        assert found[name] == pytest.approx(expected)
