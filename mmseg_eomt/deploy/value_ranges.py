"""Largest magnitudes inside an ONNX graph, measured on real inputs in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track

from mmseg_eomt.deploy.onnx_graph import Sample, opset_of, session_of


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
