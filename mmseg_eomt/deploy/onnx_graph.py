"""Look-ups and changes in an ONNX graph, sessions of it, and the ranges that its values take.

The passes work on `onnx.ModelProto` in memory. Nothing here knows about EoMT.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track

Sample = dict[str, NDArray[Any]]
"""Arrays by the names of the graph's inputs."""

# A protobuf ends at 2 GiB; ONNX Runtime takes a session from bytes or from a file.
_LARGEST_IN_MEMORY = 2**31 - 2**26


class Graph:
    """Lookups over the main graph of a model; made anew after an edit.

    Attributes:
        nodes: Its nodes, in topological order.
        initialisers: Stored tensors by name.
        producer: Index of the node that makes a value, by name.
        consumers: Indices of the nodes that read a value, by name.
        types: Element type (`onnx.TensorProto.DataType`) of each value, by name.
        outputs: Names of the graph's outputs.
        captured: Names that subgraphs (of `If`, `Loop`, `Scan`) read.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producer: dict[str, int] = {}
        self.consumers: dict[str, list[int]] = {}
        self.captured: set[str] = set()
        for index, node in enumerate(self.nodes):
            for name in filter(None, node.output):
                self.producer[name] = index
            for name in dict.fromkeys(filter(None, node.input)):
                self.consumers.setdefault(name, []).append(index)
            for attribute in node.attribute:
                for subgraph in (attribute.g, *attribute.graphs):
                    self.captured |= _reads(subgraph)
        self.types = _types(model)

    def is_float(self, name: str) -> bool:
        """Whether a value is float32."""
        return self.types.get(name) == TensorProto.FLOAT

    def float_inputs(self, index: int) -> list[str]:
        """Float32 inputs of a node."""
        return [name for name in self.nodes[index].input if name and self.is_float(name)]

    def float_outputs(self, index: int) -> list[str]:
        """Float32 outputs of a node."""
        return [name for name in self.nodes[index].output if name and self.is_float(name)]


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators that a model uses."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ValueError("The ONNX model imports no standard operators: it is damaged.")


def array_of(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A stored tensor as an array."""
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array


def lift_constants(model: onnx.ModelProto) -> None:
    """Turn `Constant` nodes into initialisers, in place: stored tensors then have one form."""
    kept = []
    for node in model.graph.node:
        values = [entry.t for entry in node.attribute if entry.name == "value"]
        if node.op_type != "Constant" or not values:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(values[0])
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    replace_nodes(model, kept)


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give the graph other nodes, in place."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def remove_unused_initialisers(model: onnx.ModelProto) -> None:
    """Remove stored tensors that nothing reads, in place."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    used |= Graph(model).captured
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        copies = []
        for tensor in kept:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copies.append(copy)
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)


def stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all stored tensors."""
    return sum(
        int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )


@contextlib.contextmanager
def session_of(
    model: onnx.ModelProto, *, optimise: bool = True
) -> Iterator[onnxruntime.InferenceSession]:
    """Open a model in ONNX Runtime on the CPU; one too large for memory goes through a file.

    Args:
        model: The model.
        optimise: Whether ONNX Runtime may rewrite the graph.

    Yields:
        The session.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    if stored_bytes(model) < _LARGEST_IN_MEMORY:
        yield onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # saving moves the tensors out of the model
        onnx.save(copy, path, save_as_external_data=True, location="model.data")
        del copy
        yield onnxruntime.InferenceSession(path, options, providers=providers)


def _reads(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph and the graphs inside it read or hand out."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names |= set(node.input)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                names |= _reads(subgraph)
    return names


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all values. Weights are left out of the inference: they may be large."""
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    skeleton.graph.name = "types"
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.input.extend(model.graph.input)
    skeleton.graph.output.extend(model.graph.output)
    types = {}
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        types[tensor.name] = tensor.data_type
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32):
            skeleton.graph.initializer.append(tensor)  # shapes and axes
        elif tensor.name not in given:
            skeleton.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    missing = sorted(
        {name for node in model.graph.node for name in node.output if name} - set(types)
    )
    if missing:
        raise ValueError(
            f"The types of {len(missing)} values of the ONNX model cannot be inferred, "
            f"{missing[0]!r} among them: it has operators outside the ONNX standard."
        )
    return types


def largest_magnitudes(
    model: onnx.ModelProto, names: Iterable[str], samples: Sequence[Sample]
) -> dict[str, float]:
    """Measure the largest absolute value of some float32 values over all samples.

    The graph itself reduces each value to one number, so that no more memory is needed than to
    run it: the values themselves never leave ONNX Runtime, which frees them as it goes.

    Args:
        model: The model, in float32.
        names: The values to measure; none may be stored in the model.
        samples: Inputs by name, one dict per run.

    Returns:
        The largest magnitude of each value.

    Raises:
        ValueError: If there is no sample, or a value is not finite.
    """
    names = list(dict.fromkeys(names))
    found = _reduced(model, dict.fromkeys(names), samples)
    ranges = {name: float(value) for name, value in found.items()}
    _check_finite(ranges)
    return ranges


def channel_magnitudes(
    model: onnx.ModelProto, widths: Mapping[str, int], samples: Sequence[Sample]
) -> dict[str, NDArray[np.float32]]:
    """Measure the largest absolute value of each channel, the last axis, over all samples.

    Args:
        model: The model, in float32.
        widths: Names of the values to measure, with how many channels they have.
        samples: Inputs by name, one dict per run.

    Returns:
        Magnitudes ``[C]`` by name.

    Raises:
        ValueError: As `largest_magnitudes`.
    """
    found = _reduced(model, widths, samples)
    _check_finite({name: float(values.max()) for name, values in found.items()})
    return found


def _reduced(
    model: onnx.ModelProto, widths: Mapping[str, int | None], samples: Sequence[Sample]
) -> dict[str, NDArray[np.float32]]:
    """Largest magnitudes of values: of each as a whole, or by channel where a width is given."""
    if not samples:
        raise ValueError("samples is empty: give at least one input to measure the model on.")
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    kept = {value.name for value in measured.graph.output}
    for index, (name, width) in enumerate(widths.items()):
        magnitude, rows, largest = (f"{kind}_{index}" for kind in ("magnitude", "rows", "largest"))
        shape = numpy_helper.from_array(np.array([-1, width or 1]), f"row_shape_{index}")
        measured.graph.initializer.append(shape)
        axes = [0] if width else [0, 1]
        measured.graph.node.extend(
            [
                helper.make_node("Abs", [name], [magnitude]),
                helper.make_node("Reshape", [magnitude, shape.name], [rows]),
            ]
        )
        if opset_of(model) >= 18:
            stored = numpy_helper.from_array(np.array(axes), f"row_axes_{index}")
            measured.graph.initializer.append(stored)
            reduce = helper.make_node("ReduceMax", [rows, stored.name], [largest], keepdims=0)
        else:  # as MMDeploy's graphs
            reduce = helper.make_node("ReduceMax", [rows], [largest], keepdims=0, axes=axes)
        measured.graph.node.append(reduce)
        sides = [width] if width else []
        measured.graph.output.append(
            helper.make_tensor_value_info(largest, TensorProto.FLOAT, sides)
        )
    wanted = [output.name for output in measured.graph.output if output.name not in kept]
    found = [np.zeros(width or (), np.float32) for width in widths.values()]
    console = Console(stderr=True)
    with session_of(measured) as session:
        for sample in track(
            samples, "Measuring magnitudes", console=console, disable=not console.is_terminal
        ):
            values = session.run(wanted, sample) if wanted else []
            # Keeps a NaN.
            found = [np.maximum(*pair) for pair in zip(found, values, strict=True)]
    return dict(zip(widths, found, strict=True))


def _check_finite(ranges: Mapping[str, float]) -> None:
    broken = [name for name, value in ranges.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(
            f"{len(broken)} values of the float32 model are not finite on the samples, "
            f"{broken[0]!r} first: the weights or the samples are damaged."
        )
