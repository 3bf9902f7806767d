"""All of an EoMT that MMDeploy traces otherwise than PyTorch runs it.

MMDeploy's own rewriter divides by an explicit ``scale`` instead of multiplying, cannot take a
boolean mask, and writes a Dropout in training mode, which TensorRT's parser refuses.

MMDeploy's own symbolic always writes its parts, with the axes of ReduceMean as an attribute: no
valid ONNX from opset 18 on, and until then TensorRT cannot see a layer norm in them.

Shape legend: M heads, L queries, S keys, D channels of a head, B images, Q queries, K classes, s
mask resolution, H/W pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch
import torch.nn.functional as F
from mmdeploy.core import FUNCTION_REWRITER, SYMBOLIC_REWRITER
from mmdeploy.utils import (
    IR,
    Backend,
    get_backend,
    get_backend_config,
    get_codebase_config,
    get_common_config,
    is_dynamic_shape,
)
from torch import Tensor
from torch.jit._trace import TracerWarning
from torch.onnx import symbolic_opset9, symbolic_opset17

from mmseg_eomt.deploy.half_precision import convert_precision
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.safe_write import replaced


# A record for ONNX stands before MMDeploy's, which is for everything.
@FUNCTION_REWRITER.register_rewriter("torch.nn.functional.scaled_dot_product_attention", ir=IR.ONNX)
def scaled_dot_product_attention__onnx(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As PyTorch's function, without its dropout: an exported graph only predicts.

    Args:
        query (Tensor): ``[..., M, L, D]``.
        key (Tensor): ``[..., M, S, D]``.
        value (Tensor): ``[..., M, S, D']``.
        attn_mask (Tensor, optional): Boolean (True may be looked at) or added to the products,
            broadcast to ``[..., M, L, S]``.
        dropout_p (float): Not used.
        is_causal (bool): Whether query i sees the keys up to i only.
        scale (float, optional): Factor of the products; ``D ** -0.5`` without it.
        enable_gqa (bool): Whether several heads of ``query`` share one of ``key`` and ``value``.

    Returns:
        Tensor: ``[..., M, L, D']``.
    """
    if enable_gqa:
        repeats = int(query.shape[-3]) // int(key.shape[-3])
        key, value = (part.repeat_interleave(repeats, dim=-3) for part in (key, value))
    if scale is None:
        scale = int(query.shape[-1]) ** -0.5
    if is_causal:
        size = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    # The smaller factor first: products in half precision stay within its range.
    products = (query * scale) @ key.transpose(-2, -1)  # [..., M, L, S]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        products = torch.where(attn_mask, products, float("-inf"))
    elif attn_mask is not None:
        products = products + attn_mask
    return products.softmax(dim=-1) @ value


@SYMBOLIC_REWRITER.register_symbolic("layer_norm", is_pytorch=True, ir=IR.ONNX)
def layer_norm__onnx(
    g: Any,
    input: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    cudnn_enable: Any,
) -> Any:
    """PyTorch's own symbolics: LayerNormalization from opset 17 on, its parts before."""
    own = symbolic_opset17 if g.opset >= 17 else symbolic_opset9
    return own.layer_norm(g, input, normalized_shape, weight, bias, eps, cudnn_enable)


@FUNCTION_REWRITER.register_rewriter(
    "mmseg_eomt.models.eomt_segmentor.EoMTSegmentor.forward", ir=IR.ONNX
)
def eomt_segmentor__forward(
    self: Any, inputs: Tensor, data_samples: Any = None, mode: str = "predict", **kwargs: Any
) -> Tensor:
    """Class scores or, with ``codebase_config.with_argmax``, labels of whole inputs.

    Args:
        inputs (Tensor): ``[B, C, H, W]``, normalised. Any size: what is no multiple of the patch
            is padded inside.
        data_samples (list, optional): Not used.
        mode (str): Not used.

    Returns:
        Tensor: Scores ``float32 [B, K, H, W]`` or labels ``int32 [B, 1, H, W]``.
    """
    ctx = FUNCTION_REWRITER.get_context()
    scores: Tensor = self.predict(inputs, data_samples)
    if get_codebase_config(ctx.cfg).get("with_argmax", True):
        # TensorRT has no 64-bit label maps to offer at the speed of these.
        return scores.argmax(dim=1, keepdim=True).int()
    return scores


@FUNCTION_REWRITER.register_rewriter(
    "mmseg_eomt.models.eomt_segmentor.EoMTSegmentor.predict", ir=IR.ONNX
)
def eomt_segmentor__predict(self: Any, inputs: Tensor, data_samples: Any = None) -> Tensor:
    """Scores ``float32 [B, K, H, W]`` of ``inputs [B, C, H, W]``, each seen as one window."""
    height, width = inputs.shape[-2:]
    patch = self.backbone.patch_size
    # (A negative number modulo the patch size differs in ONNX.)
    below, right = ((side + patch - 1) // patch * patch - side for side in (height, width))
    # Always, as an image of another size may need it; where none is needed it adds nothing.
    inputs = F.pad(inputs, (0, right, 0, below))
    masks, classes = self.network(inputs)  # [B, Q, s_h, s_w], [B, Q, K + 1]
    # A scale and no size: the same in every graph, however sizes are given.
    factor = patch / 2 ** len(self.decode_head.upscale)
    masks = F.interpolate(masks, scale_factor=factor, mode="bilinear", align_corners=False)
    masks = masks[..., :height, :width].sigmoid()
    probabilities = classes.softmax(dim=-1)[..., :-1].transpose(1, 2)  # [B, K, Q]
    scores: Tensor = probabilities @ masks.flatten(2)
    return scores.reshape(*scores.shape[:2], height, width)


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
