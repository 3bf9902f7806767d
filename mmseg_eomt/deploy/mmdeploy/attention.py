"""Attention as exporters write it: plain products and a softmax.

MMDeploy's own rewriter divides by an explicit ``scale`` instead of multiplying, cannot take a
boolean mask, and writes a Dropout in training mode, which TensorRT's parser refuses.

Shape legend: M heads, L queries, S keys, D channels of a head.
"""

from __future__ import annotations

import torch
from mmdeploy.core import FUNCTION_REWRITER
from mmdeploy.utils import IR
from torch import Tensor


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
