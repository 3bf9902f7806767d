"""Half precision, written into an ONNX graph.

TensorRT 11 builds only strongly typed networks, where the graph says in what precision each
operator computes; 10 takes them as well. So nothing is left to a flag of a builder: the file is
what runs. Which operators may be low is decided in `precision_rules`.

`onnxruntime.transformers.float16` knows no bfloat16 and decides by operator type alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from mmseg_eomt.deploy.onnx_graph import (
    Graph,
    Sample,
    array_of,
    lift_constants,
    remove_unused_initialisers,
    replace_nodes,
)
from mmseg_eomt.deploy.precision_rules import DTYPES, low_nodes


def convert_precision(
    model: onnx.ModelProto, *, dtype: str, samples: Sequence[Sample]
) -> onnx.ModelProto:
    """Write half precision into a float32 graph.

    Products, element-wise arithmetic and moves of data compute in `dtype`; Softmax,
    LayerNormalization, position tables, the sums of scores and whatever does not fit on the
    samples stay float32 (`precision_rules` has the rules). Inputs and outputs keep their types.

    Args:
        model: A float32 model. It is not changed.
        dtype: 'fp16' or 'bf16'. bfloat16 convolutions need opset 22; below they stay float32.
        samples: Inputs by name, as real as possible: magnitudes are measured on them.

    Returns:
        The converted model. Weights that only low operators read are stored in `dtype`.

    Raises:
        ValueError: If `dtype` is unknown, there is no sample, or a value is not finite on one.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {list(DTYPES)}.")
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    lift_constants(converted)
    low = low_nodes(converted, dtype=dtype, samples=samples)
    _write(converted, low, dtype)
    remove_unused_initialisers(converted)
    del converted.graph.value_info[:]  # written for float32
    return converted


def _write(model: onnx.ModelProto, low: set[int], dtype: str) -> None:
    """Cast between float32 and low nodes, once per value, and store low weights; in place."""
    graph = Graph(model)
    writer = _Writer(model, graph, low, dtype)
    for index in range(len(graph.nodes)):
        writer.add(index)
    replace_nodes(model, writer.nodes)
    model.graph.initializer.extend(writer.tensors)


class _Writer:
    """Builds the new list of nodes; casts come right before their first reader."""

    def __init__(self, model: onnx.ModelProto, graph: Graph, low: set[int], dtype: str) -> None:
        self.graph, self.low, self.dtype = graph, low, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._taken = set(graph.types)
        self._low_names: dict[str, str] = {}
        self._float_names: dict[str, str] = {}

    def add(self, index: int) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(self.graph.nodes[index])
        for place, name in enumerate(node.input):
            if name and self.graph.is_float(name):
                node.input[place] = self._low(name) if index in self.low else self._float(name)
        self.nodes.append(node)
        if index not in self.low:
            return
        for place, name in enumerate(node.output):
            if not (name and self.graph.is_float(name)):
                continue
            self._low_names[name] = name
            if name in self.graph.outputs:  # the graph's output keeps name and type
                node.output[place] = self._low_names[name] = self._fresh(name, self.dtype)
                self._float_names[name] = name
                self._cast(self._low_names[name], name, TensorProto.FLOAT)

    def _low(self, name: str) -> str:
        """Name of a value in half precision."""
        if name not in self._low_names:
            fresh = self._low_names[name] = self._fresh(name, self.dtype)
            tensor = self.graph.initialisers.get(name)
            if tensor is None:
                self._cast(name, fresh, DTYPES[self.dtype])
            else:
                kind = helper.tensor_dtype_to_np_dtype(DTYPES[self.dtype])
                stored = numpy_helper.from_array(array_of(tensor).astype(kind), fresh)
                self.tensors.append(stored)
        return self._low_names[name]

    def _float(self, name: str) -> str:
        """Name of a value in float32."""
        made_low = self.graph.producer.get(name) in self.low
        if not made_low:
            return name
        if name not in self._float_names:
            fresh = self._float_names[name] = self._fresh(name, "fp32")
            self._cast(self._low_names[name], fresh, TensorProto.FLOAT)
        return self._float_names[name]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(
            helper.make_node("Cast", [source], [target], name=self._fresh(target, "cast"), to=kind)
        )

    def _fresh(self, name: str, suffix: str) -> str:
        fresh = f"{name}_{suffix}"
        while fresh in self._taken:
            fresh += "_"
        self._taken.add(fresh)
        return fresh
