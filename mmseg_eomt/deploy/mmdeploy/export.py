"""The call of the exporter that MMDeploy's rewriters were written for, and what follows it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxslim
from mmdeploy.core import FUNCTION_REWRITER
from mmdeploy.utils import (
    IR,
    Backend,
    get_backend,
    get_backend_config,
    get_common_config,
    is_dynamic_shape,
)
from torch.jit._trace import TracerWarning

from mmseg_eomt.deploy.precision import convert_precision
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.safe_write import replaced

PRECISIONS = ("fp32", "fp16")
LARGEST_FILE = 2**31
"""Bytes of a protobuf message, which an ONNX file is."""


@FUNCTION_REWRITER.register_rewriter("torch.onnx.export", ir=IR.ONNX)
def onnx_export__torchscript(model: Any, args: Any, f: str, **kwargs: Any) -> Any:
    """Exports by tracing; writes half precision into the graph of an EoMT if that is wished.

    MMDeploy does not say which exporter it means, and PyTorch's default knows neither its symbolic
    functions nor its ``dynamic_axes``.
    """
    ctx = FUNCTION_REWRITER.get_context()
    kwargs = {**kwargs, "dynamo": False}
    if not isinstance(model, EoMTSegmentor):
        return ctx.origin_func(model, args, f, **kwargs)
    precision = wanted_precision(ctx.cfg)
    _check_fits_one_file(model)
    images = args[0] if isinstance(args, tuple) else args
    patch = model.backbone.patch_size
    grid = (-(-images.shape[-2] // patch), -(-images.shape[-1] // patch))
    model.backbone.prepare_export(None if is_dynamic_shape(ctx.cfg) else grid)
    with warnings.catch_warnings():
        # What is a constant while tracing (channels, windows of one size) is one on purpose.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        ctx.origin_func(model, args, f, **kwargs)
    # Tracing writes every step of the arithmetic on sizes; most of it are constants.
    graph = onnxslim.slim(onnx.load(f))
    if precision != "fp32":
        name = (kwargs.get("input_names") or ["input"])[0]
        samples = [{name: images.cpu().numpy()}]
        graph = convert_precision(graph, dtype=precision, samples=samples)
    with replaced(Path(f)) as file:
        file.write(graph.SerializeToString())


def _check_fits_one_file(model: EoMTSegmentor) -> None:
    size = sum(weights.numel() * weights.element_size() for weights in model.parameters())
    if size >= LARGEST_FILE:
        raise ValueError(
            f"the model has {size / 2**30:.1f} GiB of weights, but an ONNX file of MMDeploy holds "
            "less than 2 GiB: export it with tools/export.py, which writes them beside the graph."
        )


def wanted_precision(deploy_cfg: Any) -> str:
    """The precision that a deploy config asks for, 'fp32' or 'fp16', in MMDeploy's words.

    Raises:
        ValueError: If it is another.
    """
    if get_backend(deploy_cfg) == Backend.TENSORRT:
        common = get_common_config(deploy_cfg)
        if common.get("int8_mode"):
            raise ValueError(
                "backend_config.common_config.int8_mode is on: deploy configs know fp32 and fp16 "
                "(fp16_mode=True). Make int8 with tools/export.py --precision int8."
            )
        return "fp16" if common.get("fp16_mode") else "fp32"
    precision = get_backend_config(deploy_cfg).get("precision", "fp32")
    if precision not in PRECISIONS:
        raise ValueError(
            f"backend_config.precision is {precision!r}; allowed: {', '.join(PRECISIONS)}. Make "
            "int8 with tools/export.py --precision int8."
        )
    return str(precision)
