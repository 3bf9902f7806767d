"""Largest magnitudes inside an ONNX graph, measured on real inputs in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmseg_eomt.deploy.onnx_graph import Sample, session_of


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
    if not samples:
        raise ValueError("samples is empty: give at least one input to measure the model on.")
    names = list(dict.fromkeys(names))
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    kept = [value.name for value in measured.graph.output]
    for index, name in enumerate(names):
        magnitude, largest = f"magnitude_{index}", f"largest_{index}"
        measured.graph.node.extend(
            [
                helper.make_node("Abs", [name], [magnitude]),
                helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0),
            ]
        )
        measured.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
    wanted = [output.name for output in measured.graph.output if output.name not in kept]
    found = np.zeros(len(wanted))
    with session_of(measured) as session:
        for sample in samples:
            values = np.array(session.run(wanted, sample) if wanted else [], dtype=np.float64)
            found = np.maximum(found, values)  # keeps a NaN
    ranges = dict(zip(names, found.tolist(), strict=True))
    broken = [name for name, value in ranges.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(
            f"{len(broken)} values of the float32 model are not finite on the samples, "
            f"{broken[0]!r} first: the weights or the samples are damaged."
        )
    return ranges
