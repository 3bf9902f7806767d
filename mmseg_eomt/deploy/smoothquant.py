"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438), written into a float32 ONNX graph.

A few channels of a ViT's activations are far larger than the others, so that one scale for all
leaves the others few steps. Before they are quantised such channels are divided by a number, and
the rows of the weights that read them are multiplied by it. The number is part of the operator
that comes before: of the weights of a LayerNormalization, or of the columns of the layer that
makes the values of an attention. The float32 model computes the same as before.

Shape legend: I inputs, O outputs of a layer, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mmseg_eomt.deploy.half_precision import Flow
from mmseg_eomt.deploy.onnx_graph import (
    Graph,
    Sample,
    array_of,
    channel_magnitudes,
    lift_constants,
    remove_unused_initialisers,
    session_of,
)


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """A Linear layer; its bias is an `Add` after it, or the third input of a `Gemm`.

    Args:
        index: Of its node, `MatMul` or `Gemm`.
        source: Name of the value that it reads.
        weight: Name of its stored matrix.
        output_axis: Axis of the outputs in the matrix: 1 for `[I, O]`, 0 for `[O, I]`.
        last: Whether no learned layer comes after it.
    """

    index: int
    source: str
    weight: str
    output_axis: int
    last: bool

    def matrix(self, graph: Graph) -> NDArray[np.float32]:
        """The stored matrix as ``[I, O]``."""
        stored = array_of(graph.initialisers[self.weight])
        return stored if self.output_axis == 1 else stored.T


def linear_layers(graph: Graph) -> list[LinearLayer]:
    """All Linear layers, in the order of the graph.

    A product of two computed values (attention, masks) is none, and neither is a product that
    does not depend on the picture (position tables).
    """
    flow = Flow(graph)
    layers = []
    for index in sorted(flow.learned):
        node = graph.nodes[index]
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        source, weight = node.input[:2]
        tensor = graph.initialisers.get(weight)
        if tensor is None or len(tensor.dims) != 2 or source not in flow.data:
            continue
        if not (graph.is_float(source) and graph.is_float(weight)):
            continue
        flags = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if flags.get("transA") or flags.get("alpha", 1) != 1 or flags.get("beta", 1) != 1:
            continue  # a Gemm, but no Linear layer
        readers = graph.consumers.get(node.output[0], [])
        last = all(reader in flow.after for reader in readers)
        layers.append(LinearLayer(index, source, weight, 0 if flags.get("transB") else 1, last))
    return layers


ALPHA = 0.5
"""How much of the spread moves from activations to weights; the paper's choice for most models."""

# Between a value and its reader, these leave channels as they are if there are as many afterwards.
_KEEP_CHANNELS = frozenset({"Slice", "Reshape", "Identity"})
Place = tuple[int, int]
"""An input of a node: index of the node, and which of its inputs."""

_VALUE_PATH = frozenset({"Squeeze", "Slice", "Split", "Gather", "Transpose", "Reshape"})


def smooth(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
    """Even out the channels that Linear layers read.

    Args:
        model: A float32 model. It is not changed.
        samples: Inputs by name.

    Returns:
        A model that computes the same in float32.

    Raises:
        ValueError: If there is no sample, or a value is not finite on one.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    lift_constants(smoothed)
    graph = Graph(smoothed)
    by_index = {layer.index: layer for layer in linear_layers(graph)}
    groups: list[tuple[str, int, list[LinearLayer]]] = []  # where to divide, and who multiplies
    for index, node in enumerate(graph.nodes):
        if node.op_type == "LayerNormalization" and len(node.input) == 3:
            scale = graph.initialisers.get(node.input[1])
            bias = graph.initialisers.get(node.input[2])
            if scale is None or bias is None or len(scale.dims) != 1:
                continue
            readers = _readers(graph, by_index, node.output[0], scale.dims[0])
            if readers:
                groups.append((node.output[0], index, readers))
    values: dict[str, tuple[LinearLayer, LinearLayer, Place | None]] = {}
    for layer in by_index.values():
        made = _value_maker(graph, by_index, layer)
        if made is not None and len(graph.consumers[layer.source]) == 1:
            values[layer.source] = (layer, *made)
    widths = {name: len(readers[0].matrix(graph)) for name, _, readers in groups}
    widths |= {name: len(layer.matrix(graph)) for name, (layer, *_) in values.items()}
    if not widths:
        return smoothed
    largest = channel_magnitudes(smoothed, widths, samples)
    edit = _Edit(smoothed, graph)
    for name, index, readers in groups:
        factors = _factors(largest[name], [edit.matrix(layer) for layer in readers])
        for place in (1, 2):
            edit.divide(index, place, factors, axis=0)
        for layer in readers:
            edit.multiply_rows(layer, factors)
    for name, (layer, maker, bias) in values.items():
        factors = _factors(largest[name], [edit.matrix(layer)])
        columns = np.ones(edit.matrix(maker).shape[1], np.float32)
        columns[-len(factors) :] = factors  # query, key, value
        edit.divide(maker.index, 1, columns, axis=maker.output_axis)
        if bias is not None:
            edit.divide(*bias, columns, axis=0)
        edit.multiply_rows(layer, factors)
    edit.write()
    remove_unused_initialisers(smoothed)
    _check_same(model, smoothed, samples[0])
    return smoothed


def _check_same(model: onnx.ModelProto, smoothed: onnx.ModelProto, sample: Sample) -> None:
    """The queries, keys and values of a joint layer were taken to lie in this order."""
    names = [value.name for value in model.graph.output]
    with session_of(model) as before, session_of(smoothed) as after:
        for name, expected, found in zip(
            names, before.run(names, sample), after.run(names, sample), strict=True
        ):
            if np.issubdtype(expected.dtype, np.integer):
                same = float((expected == found).mean()) >= 0.999  # ties
            else:
                bound = 1e-3 * float(np.abs(expected).max())
                same = bool(np.abs(found - expected).max() <= bound)
            if not same:
                raise ValueError(
                    f"SmoothQuant changed the output {name!r} of this model, whose attention has "
                    "an unknown form. Export it with fp16, and please report it."
                )


def _factors(
    activations: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """What to divide each channel by, ``[C]``: equation 4 of the paper."""
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    usable = (activations > 0) & (rows > 0)  # a channel that is never used stays
    factors = np.ones_like(activations)
    factors[usable] = activations[usable] ** ALPHA / rows[usable] ** (1 - ALPHA)
    # One factor for all would change nothing: around 1 the numbers stay as large as they were.
    middle = np.exp(np.log(factors[usable]).mean()) if usable.any() else 1.0
    return np.asarray(np.clip(factors / middle, 1e-4, 1e4), np.float32)


def _readers(
    graph: Graph, by_index: dict[int, LinearLayer], name: str, channels: int
) -> list[LinearLayer] | None:
    """The Linear layers that read a value; None if anything else does."""
    if name in graph.outputs or name in graph.captured:
        return None
    found: list[LinearLayer] = []
    for index in graph.consumers.get(name, []):
        layer, node = by_index.get(index), graph.nodes[index]
        if layer is not None and len(layer.matrix(graph)) == channels:
            found.append(layer)
        elif node.op_type in _KEEP_CHANNELS and node.input[0] == name:
            behind = _readers(graph, by_index, node.output[0], channels)
            if behind is None:
                return None
            found += behind
        elif node.op_type != "Shape":
            return None
    return found


def _value_maker(
    graph: Graph, by_index: dict[int, LinearLayer], layer: LinearLayer
) -> tuple[LinearLayer, Place | None] | None:
    """The layer that makes the values which an attention mixes for an output projection.

    Returns:
        That layer, and node and input of its bias if it has one. None if the graph has another
        form than softmax, product with the values, heads joined, output projection.
    """
    name = layer.source
    for op_type in ("Reshape", "Transpose", "MatMul"):
        place = graph.producer.get(name)
        if place is None or graph.nodes[place].op_type != op_type:
            return None
        product = graph.nodes[place]
        name = product.input[0]
    attention = graph.producer.get(name)
    if attention is None or graph.nodes[attention].op_type != "Softmax":
        return None
    name = product.input[1]
    bias: Place | None = None
    alone = True  # whether nothing else reads what lies between
    while (index := graph.producer.get(name)) is not None:
        node = graph.nodes[index]
        alone = alone and len(graph.consumers[name]) == 1 and name not in graph.outputs
        if index in by_index:
            maker, channels = by_index[index], len(layer.matrix(graph))
            if node.op_type == "Gemm" and len(node.input) == 3:
                bias = (index, 2)
            columns = maker.matrix(graph).shape[1]
            fits = columns == 3 * channels or (columns == channels and alone)
            return (maker, bias) if fits else None
        if node.op_type == "Add" and bias is None:
            stored = [place for place in (0, 1) if node.input[place] in graph.initialisers]
            if len(stored) != 1 or len(graph.initialisers[node.input[stored[0]]].dims) != 1:
                return None
            bias = (index, stored[0])
            name = node.input[1 - stored[0]]
        elif node.op_type in _VALUE_PATH:
            name = node.input[0]
        else:
            return None
    return None


class _Edit:
    """Changed stored tensors, each under a name of its own: two layers may share the old one."""

    def __init__(self, model: onnx.ModelProto, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.arrays: dict[tuple[int, int], NDArray[np.float32]] = {}

    def matrix(self, layer: LinearLayer) -> NDArray[np.float32]:
        """The matrix of a layer ``[I, O]`` as it is by now."""
        array = self._array(layer.index, 1)
        return array if layer.output_axis == 1 else array.T

    def divide(self, index: int, place: int, factors: NDArray[np.float32], *, axis: int) -> None:
        """Divide a stored input of a node along an axis."""
        array = self._array(index, place)
        shape = [1] * array.ndim
        shape[axis] = len(factors)
        self.arrays[index, place] = np.asarray(array / factors.reshape(shape), np.float32)

    def multiply_rows(self, layer: LinearLayer, factors: NDArray[np.float32]) -> None:
        """Multiply the rows of a layer's matrix."""
        self.divide(layer.index, 1, np.float32(1) / factors, axis=1 - layer.output_axis)

    def write(self) -> None:
        """Store what has changed."""
        for (index, place), array in self.arrays.items():
            node = self.model.graph.node[index]
            name = f"{node.input[place]}_smooth_{index}"
            self.model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
            )
            node.input[place] = name

    def _array(self, index: int, place: int) -> NDArray[np.float32]:
        if (index, place) not in self.arrays:
            name = self.graph.nodes[index].input[place]
            self.arrays[index, place] = array_of(self.graph.initialisers[name])
        return self.arrays[index, place]
