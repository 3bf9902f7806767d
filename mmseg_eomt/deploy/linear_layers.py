"""The Linear layers of an ONNX graph: products of data with a stored matrix.

Shape legend: I inputs, O outputs of a layer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from mmseg_eomt.deploy.onnx_graph import Graph, array_of
from mmseg_eomt.deploy.precision_rules import Flow


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
