"""From a segmentor to a float32 ONNX model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxslim
import torch
from torch import nn

from mmseg_eomt.deploy.graph import DeployGraph, dynamic_axes, example_input
from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.onnx_graph import Sample, lift_constants, session_of

_LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_graph(
    segmentor: nn.Module, metadata: DeployMetadata, *, opset_version: int, debug: bool = False
) -> onnx.ModelProto:
    """Export a segmentor with `torch.onnx`.

    Args:
        segmentor: In float32. It is not changed.
        metadata: Says sizes, input and outputs; it is not written yet.
        opset_version: See `request.OPSETS`.
        debug: Whether the exporter may talk.

    Returns:
        A float32 model of standard operators, its constants stored as initialisers.
    """
    graph = DeployGraph(segmentor, metadata).eval()
    with torch.no_grad(), contextlib.nullcontext() if debug else _quiet():
        program = torch.onnx.export(
            graph,
            (example_input(metadata),),
            input_names=[metadata.input.name],
            output_names=list(metadata.outputs),
            dynamic_shapes=(dynamic_axes(metadata),),
            opset_version=opset_version,
            dynamo=True,
            external_data=False,
            verbose=debug,
        )
    assert program is not None, "without a file name the exporter returns the program"
    model: onnx.ModelProto = program.model_proto
    lift_constants(model)
    # Where in this package each node came from: of no use to a user, and it names their folders.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    return model


def simplified(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
    """Simplify with onnxslim, and hold the result against the model on samples.

    Args:
        model: It is not changed.
        samples: Inputs by name.

    Raises:
        ValueError: If the results differ by more than float32 rounding.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        slim: onnx.ModelProto = onnxslim.slim(copy)
    lift_constants(slim)
    names = [output.name for output in model.graph.output]
    with session_of(model) as before, session_of(slim) as after:
        for sample in samples:
            pairs = zip(before.run(names, sample), after.run(names, sample), strict=True)
            for name, (expected, found) in zip(names, pairs, strict=True):
                if not _same(expected, found):
                    raise ValueError(
                        f"onnxslim changed the output {name!r} of this model. Export it with "
                        "simplify=False (--no-simplify), and please report it."
                    )
    return slim


def _same(expected: np.ndarray, found: np.ndarray) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if np.issubdtype(expected.dtype, np.integer):
        # A tie between classes may be decided by rounding.
        return float((expected == found).mean()) >= 0.9999
    return np.allclose(expected, found, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say to themselves."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
