"""bfloat16 graphs where nothing computes in bfloat16.

ONNX Runtime's CPU kernels know no bfloat16. Here every operator computes in float32 and its result
is rounded to bfloat16, which is what hardware does whose products accumulate in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmseg_eomt.deploy.onnx_graph import Graph, array_of, replace_nodes
from mmseg_eomt.deploy.precision_rules import MOVES


def emulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a bfloat16 graph into a float32 one that rounds where the other computes.

    Args:
        model: A model from `convert_precision(..., dtype='bf16')`. It is not changed.

    Returns:
        A float32 model with the same inputs and outputs, for checking: it is twice as large and
        slower.

    Raises:
        ValueError: If an input or output of the graph is bfloat16.
    """
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            raise ValueError(
                f"{value.name!r} of the ONNX model is bfloat16: NumPy has no such type."
            )
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    del emulated.graph.value_info[:]
    types = Graph(emulated).types
    for tensor in emulated.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.from_array(array_of(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
    nodes = []
    for node in emulated.graph.node:
        nodes.append(node)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
        if node.op_type in MOVES:
            continue  # what it moves is rounded already
        for place, name in enumerate(node.output):
            if name and types[name] == TensorProto.BFLOAT16:
                node.output[place] = f"{name}_exact"
                nodes += _rounding(f"{name}_exact", name)
    replace_nodes(emulated, nodes)
    return emulated


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    middle = f"{target}_rounded"
    return [
        helper.make_node("Cast", [source], [middle], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [middle], [target], to=TensorProto.FLOAT),
    ]
