"""int8 for the Linear layers of an ONNX graph, as QuantizeLinear and DequantizeLinear.

Only what a Linear layer reads is rounded: its matrix by output, its input with one scale for all
channels, which `smoothing` has evened out before. All scales are symmetric, as TensorRT demands.
What it makes stays float32, and so do attention, norms and everything else.

`onnxruntime.quantization.quantize_static` writes the same nodes; it measures anew for each choice
of layers, though, and the choice here is made by measuring.

Shape legend: I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mmseg_eomt.deploy.onnx_graph import (
    Graph,
    Sample,
    largest_magnitudes,
    remove_unused_initialisers,
    replace_nodes,
    session_of,
)
from mmseg_eomt.deploy.smoothquant import LinearLayer, linear_layers, smooth

LARGEST_SHARE = 0.1
"""A last layer stays float32 if its error alone exceeds this share of that of all layers before."""
_COMPARED = 4
"""Samples that this is measured on."""


def quantize_linears(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
    """Quantise the Linear layers of a float32 graph to int8.

    The layers that no other learned layer follows (class head, last layer of the mask head) move
    the scores directly and cost next to nothing. Each stays float32 if the error of quantising it
    alone is more than a tenth (`LARGEST_SHARE`) of the error of quantising all layers before.

    Args:
        model: A float32 model. It is not changed.
        samples: Inputs by name, as real as possible and of all kinds: ranges are measured on them,
            one at a time. What exceeds them later is clipped.

    Returns:
        The quantised model. Its inputs and outputs are those of `model`.

    Raises:
        ValueError: If there is no sample, no Linear layer, or a value is not finite on a sample.
    """
    smoothed = smooth(model, samples)
    layers = linear_layers(Graph(smoothed))
    if not layers:
        raise ValueError("The ONNX model has no Linear layer that could be quantised.")
    sources = [layer.source for layer in layers]
    ranges = largest_magnitudes(smoothed, sources, samples)
    before = [layer for layer in layers if not layer.last]
    kept = before or layers
    quantised = _with_quantised(smoothed, kept, ranges)
    compared = samples[:_COMPARED]
    limit = LARGEST_SHARE * _error(smoothed, quantised, compared)
    added = [
        layer
        for layer in layers
        if before
        and layer.last
        and _error(smoothed, _with_quantised(smoothed, [layer], ranges), compared) <= limit
    ]
    return _with_quantised(smoothed, [*before, *added], ranges) if added else quantised


def _with_quantised(
    model: onnx.ModelProto, layers: Collection[LinearLayer], ranges: dict[str, float]
) -> onnx.ModelProto:
    """A copy of the model with some layers quantised."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    by_index = {layer.index: layer for layer in layers}
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, str] = {}  # by the name of the value
    for index, node in enumerate(graph.nodes):
        layer = by_index.get(index)
        if layer is not None:
            if layer.source not in rounded:
                scale = np.float32(max(ranges[layer.source], 1e-8) / 127)
                nodes += _rounding(copy, layer.source, scale)
                rounded[layer.source] = f"{layer.source}_int8_back"
            nodes.append(_stored(copy, layer, layer.matrix(graph)))
            nodes += _product(node, rounded[layer.source], nodes[-1].output[0])
        else:
            nodes.append(node)
    replace_nodes(copy, nodes)
    remove_unused_initialisers(copy)
    del copy.graph.value_info[:]
    onnx.checker.check_model(copy)
    return copy


def _rounding(model: onnx.ModelProto, name: str, scale: np.float32) -> list[onnx.NodeProto]:
    """Nodes that round a value to int8 steps."""
    zero = numpy_helper.from_array(np.int8(0), f"{name}_int8_zero")
    step = numpy_helper.from_array(np.asarray(scale), f"{name}_int8_scale")
    model.graph.initializer.extend([zero, step])
    low, back = f"{name}_int8", f"{name}_int8_back"
    return [
        helper.make_node("QuantizeLinear", [name, step.name, zero.name], [low], name=low),
        helper.make_node("DequantizeLinear", [low, step.name, zero.name], [back], name=back),
    ]


def _stored(
    model: onnx.ModelProto, layer: LinearLayer, matrix: NDArray[np.float32]
) -> onnx.NodeProto:
    """Store a matrix as int8; the node that reads it, with a scale for each output."""
    scales = np.maximum(np.abs(matrix).max(axis=0) / 127, 1e-12).astype(np.float32)  # [O]
    integers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
    # Layers may share a matrix; the number of the node tells them apart.
    name = f"{layer.weight}_int8_{layer.index}"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ascontiguousarray(integers), name),
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}_zero"),
        ]
    )
    return helper.make_node(
        "DequantizeLinear",
        [name, f"{name}_scale", f"{name}_zero"],
        [f"{name}_back"],
        name=f"{name}_back",
        axis=1,
    )


def _product(node: onnx.NodeProto, source: str, matrix: str) -> list[onnx.NodeProto]:
    """The layer's node on other inputs; a bias is added after it.

    (ONNX Runtime computes in int8 a MatMul, but of Gemm only one with an integer bias.)
    """
    output, bias = node.output[0], node.input[2] if len(node.input) == 3 else ""
    if not bias:
        return [helper.make_node("MatMul", [source, matrix], [output], name=node.name)]
    return [
        helper.make_node("MatMul", [source, matrix], [f"{output}_product"], name=node.name),
        helper.make_node("Add", [f"{output}_product", bias], [output], name=f"{output}_bias"),
    ]


def _error(model: onnx.ModelProto, quantised: onnx.ModelProto, samples: Sequence[Sample]) -> float:
    """Mean difference of the first float output, or of labels where there is none."""
    values = list(model.graph.output)
    floats = [item.name for item in values if item.type.tensor_type.elem_type == 1]
    name = floats[0] if floats else values[0].name
    total = 0.0
    with session_of(model) as before, session_of(quantised) as after:
        for sample in samples:
            (expected,), (found,) = before.run([name], sample), after.run([name], sample)
            difference = np.abs(expected - found) if floats else expected != found
            total += float(difference.mean())
    return total / len(samples)
