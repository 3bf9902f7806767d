"""Half precision, written into an ONNX graph, and the rules of what may be half.

An operator is *low* if it reads and writes float16 or bfloat16. The rules, in their order:

1. Only listed operators: products, arithmetic, moves of data. Softmax, LayerNormalization, Erf,
   Sigmoid, Resize, reductions and all that is not listed stay float32.
2. What does not depend on the values of the picture (position tables, computed from its size)
   stays float32, and so does arithmetic that reads such a table (rotary embedding). An angle of
   many radians has no correct sine in half precision.
3. Before the first learned layer (normalisation of pixels) and, after the last one, from the first
   float32 operator on (resize, sigmoid, sums of scores) everything stays float32: a label is the
   largest of nearly equal sums.
4. Arithmetic between float32 operators stays float32: casting there and back costs more.
5. A value that does not fit is neither written nor read in half precision: one that exceeds
   `LARGEST` on the samples, or lies below the normal numbers as a whole. Nor is a stored tensor
   that loses more than rounding does (`stored_error`).
6. The operator takes the type at all at the model's opset (Conv takes bfloat16 from 22 on).

TensorRT 11 builds only strongly typed networks, where the graph says in what precision each
operator computes; 10 takes them as well. So nothing is left to a flag of a builder: the file is
what runs. Which operators may be low is decided in `precision_rules`.

`onnxruntime.transformers.float16` knows no bfloat16 and decides by operator type alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmseg_eomt.deploy.onnx_graph import (
    Graph,
    Sample,
    array_of,
    largest_magnitudes,
    lift_constants,
    opset_of,
    remove_unused_initialisers,
    replace_nodes,
)

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Gelu", "Relu", "Where", "Max", "Min"})
MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Flatten"),
        *("Expand", "Gather", "Pad", "Identity", "Tile", "DepthToSpace", "SpaceToDepth"),
    }
)

DTYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPE_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

# float16 ends at 65,504. Its precision is the same at 4 and at 4,000, so that magnitude costs
# nothing until it overflows (measured, see docs/deploy.md): an eighth of the range is headroom for
# pictures that are not among the samples. bfloat16 has the range of float32.
LARGEST = {"fp16": 65504 / 8, "bf16": float("inf")}
_SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}
# Distance from 1 to the next number. Rounding alone costs a quarter of it (root mean square).
_EPSILON = {"fp16": 2.0**-10, "bf16": 2.0**-7}


def low_nodes(model: onnx.ModelProto, *, dtype: str, samples: Sequence[Sample]) -> set[int]:
    """Indices of the nodes that may compute in half precision.

    Args:
        model: A float32 model without `Constant` nodes.
        dtype: 'fp16' or 'bf16'.
        samples: Inputs to measure magnitudes on.

    Raises:
        ValueError: As `largest_magnitudes`.
    """
    graph = Graph(model)
    flow = Flow(graph)
    opset = opset_of(model)
    low: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if (
            node.op_type in PRODUCTS | ARITHMETIC | MOVES
            and graph.float_outputs(index)
            and not graph.captured.intersection(node.output)
            and _takes(node, _TYPE_NAMES[dtype], opset)
            and _structure_allows(index, graph, flow, low)
        ):
            low.add(index)
    _leave_to_neighbours(graph, flow, low)
    fitting = _Fitting(graph, flow, dtype, low, model, samples)
    return {index for index in low if fitting.allows(index)}


class Flow:
    """What each value depends on, and what is still to come after each node.

    Attributes:
        data: Values that depend on the values of the graph's inputs (not only on their shape).
        learned: Indices of learned layers: products or norms of data with stored weights.
        before: Indices of nodes that no learned layer comes before.
        after: Indices of nodes that no learned layer comes after.
    """

    def __init__(self, graph: Graph) -> None:
        stored = set(graph.initialisers)
        self.data = set(graph.types) - stored - set(graph.producer)  # the graph's inputs
        self.learned: set[int] = set()
        self.before: set[int] = set()
        seen: set[str] = set()  # values that a learned layer comes before
        for index, node in enumerate(graph.nodes):
            names = [name for name in node.input if name]
            if node.op_type not in ("Shape", "Size") and self.data.intersection(names):
                self.data.update(node.output)
            elif names and stored.issuperset(names):
                stored.update(node.output)  # a transposed or dequantised weight
            weights = [name for name in names[1:] + names[:1] if name in stored]
            if self.data.intersection(names) and (
                (node.op_type in PRODUCTS and weights)
                or (node.op_type == "LayerNormalization" and weights)
            ):
                self.learned.add(index)
            if index in self.learned or seen.intersection(names):
                seen.update(node.output)
            else:
                self.before.add(index)
        self.after: set[int] = set()
        for index in reversed(range(len(graph.nodes))):
            following = [
                reader
                for name in graph.nodes[index].output
                for reader in graph.consumers.get(name, [])
            ]
            if index not in self.learned and all(reader in self.after for reader in following):
                self.after.add(index)


def _structure_allows(index: int, graph: Graph, flow: Flow, low: set[int]) -> bool:
    """Rules 2 to 4, for a node whose predecessors are decided."""
    node = graph.nodes[index]
    inputs = graph.float_inputs(index)
    made = [name for name in inputs if name in graph.producer]
    high = [name for name in made if graph.producer[name] not in low]
    if not flow.data.intersection(inputs):
        return node.op_type in MOVES and not high  # class token and registers, expanded
    if index in flow.before:
        return False
    if index in flow.after and any(graph.producer[name] in flow.after for name in high):
        return False
    if node.op_type not in ARITHMETIC:
        return True
    if any(_is_table(name, graph, flow) for name in inputs):
        return False
    if any(graph.nodes[graph.producer[name]].op_type.startswith("Reduce") for name in high):
        return False
    return not high or len(high) < len(made)


def _is_table(name: str, graph: Graph, flow: Flow) -> bool:
    """Whether a value is a position table: no data, and more than one number or one per channel."""
    if name in flow.data:
        return False
    tensor = graph.initialisers.get(name)
    return tensor is None or sum(side > 1 for side in tensor.dims) > 1


def _leave_to_neighbours(graph: Graph, flow: Flow, low: set[int]) -> None:
    """Rule 4, backwards: arithmetic on one value that only float32 operators read."""
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if index not in low or node.op_type not in ARITHMETIC:
            continue
        sources = [name for name in graph.float_inputs(index) if name in flow.data]
        outputs = graph.float_outputs(index)
        readers = [reader for name in outputs for reader in graph.consumers.get(name, [])]
        if (
            len(sources) == 1
            and readers
            and not low.intersection(readers)
            and not graph.outputs.intersection(outputs)
        ):
            low.discard(index)


class _Fitting:
    """Rule 5: measured values and stored tensors of the nodes in question."""

    def __init__(
        self,
        graph: Graph,
        flow: Flow,
        dtype: str,
        low: set[int],
        model: onnx.ModelProto,
        samples: Sequence[Sample],
    ) -> None:
        self.graph = graph
        self.dtype = dtype
        touched = [
            name
            for index in sorted(low)
            for name in (*graph.float_inputs(index), *graph.float_outputs(index))
        ]
        ranges = largest_magnitudes(model, (name for name in touched if name in flow.data), samples)
        self.unfit = {
            name
            for name, largest in ranges.items()
            if largest > LARGEST[dtype] or 0 < largest < _SMALLEST_NORMAL[dtype]
        }
        for name in dict.fromkeys(touched):
            tensor = graph.initialisers.get(name)
            if tensor is not None and not stored_fits(array_of(tensor), dtype=dtype):
                self.unfit.add(name)

    def allows(self, index: int) -> bool:
        values = (*self.graph.float_inputs(index), *self.graph.float_outputs(index))
        return self.unfit.isdisjoint(values)


def stored_fits(array: NDArray[Any], *, dtype: str) -> bool:
    """Whether a stored float32 tensor survives rounding: nothing overflows, little underflows.

    The error (root mean square, relative to the tensor) may be twice the distance from 1 to the
    next number, eight times what rounding alone costs.
    """
    rounded = rounded_to(array, dtype=dtype)
    if not np.isfinite(rounded).all():
        return False
    error = float(np.linalg.norm((rounded - array).astype(np.float64)))
    return error <= 2 * _EPSILON[dtype] * float(np.linalg.norm(array.astype(np.float64)))


def rounded_to(array: NDArray[Any], *, dtype: str) -> NDArray[np.float32]:
    """Round float32 numbers to 'fp16' or 'bf16' and back."""
    with np.errstate(over="ignore"):
        low = array.astype(onnx.helper.tensor_dtype_to_np_dtype(DTYPES[dtype]))
    return low.astype(np.float32)


def _takes(node: onnx.NodeProto, type_name: str, opset: int) -> bool:
    """Whether the operator's definition at `opset` allows a type for its float inputs."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    # Data and result of all listed operators are of one type, but for Where's condition.
    return any(
        type_name in constraint.allowed_type_strs
        for constraint in schema.type_constraints
        if constraint.type_param_str == schema.outputs[0].type_str
    )


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
