"""Queries, keys and values of all heads, projected and rotated without copies.

Shape legend: B images, T tokens, N patches, C channels, M attention heads, D = C / M.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_eomt.models.layers.lean import (
    Again,
    in_autocast_dtype,
    lean_gradients,
    plain_operators,
)


def project_heads(
    attention: Any, tokens: Tensor, *, norm: nn.Module, rope: Tensor | None, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of timm's ``Attention`` or ``EvaAttention``.

    Args:
        attention (nn.Module): The layer.
        tokens (Tensor): ``[B, T, C]``.
        norm (nn.Module): Normalises them.
        rope (Tensor, optional): ``[N, 2 * D]``, sines then cosines of the last N tokens.
        start (int): The first token that is rotated, T - N.

    Returns:
        tuple[Tensor, Tensor, Tensor]: ``[B, M, T, D]`` each, of one dtype.
    """
    heads = attention.num_heads
    normed = not isinstance(attention.q_norm, nn.Identity)
    half = rope is None or attention.rotate_half
    if attention.qkv is None:
        normalised = norm(tokens)
        query, key, value = (
            project(normalised).view(*tokens.shape[:2], heads, -1).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
    else:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        if half and not normed and not plain_operators():
            again = Again(norm, norm.parameters(), tokens.device.type)
            weight, bias = in_autocast_dtype(tokens.device.type, weight, bias)
            layout = (start, heads)
            found: tuple[Tensor, Tensor, Tensor]
            found = _Heads.apply(layout, rope, again, tokens, weight, bias, *again.parameters)
            return found
        packed = F.linear(norm(tokens), weight, bias).view(*tokens.shape[:2], 3, heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rope is not None:
        query = _rotated(query, rope, start, half=half).type_as(value)
        key = _rotated(key, rope, start, half=half).type_as(value)
    return query, key, value


def _rotated(heads: Tensor, rope: Tensor, start: int, *, half: bool) -> Tensor:
    """Rotates the tokens from ``start`` on of ``heads [B, M, T, D]`` by ``rope [N, 2 * D]``."""
    rotated = apply_rot_embed_cat(heads[:, :, start:], rope, half=half)
    return torch.cat((heads[:, :, :start].type_as(rotated), rotated), dim=2)


class _Heads(torch.autograd.Function):
    """Norm and joint projection, whose result is rotated in place and split by views.

    The rotation is linear, so that nothing of it is kept: the backward pass turns the gradient
    back, in the buffer that the product reads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[int, int],
        rope: Tensor | None,
        again: Again,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *_: Tensor,
    ) -> tuple[Tensor, ...]:
        start, heads = layout
        ctx.start, ctx.again = start, again
        ctx.save_for_backward(tokens, weight, rope)
        packed = F.linear(again.make(tokens), weight, bias)
        packed = packed.view(*tokens.shape[:2], 3, heads, -1)
        if rope is not None:
            _rotate_(packed[:, start:, :2], rope, back=False)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, rope = ctx.saved_tensors
        batch, heads, length, dims = gradients[0].shape
        packed = gradients[0].new_empty(batch, length, 3, heads, dims)
        for index, gradient in enumerate(gradients):
            packed[:, :, index].copy_(gradient.transpose(1, 2))
        if rope is not None:
            _rotate_(packed[:, ctx.start :, :2], rope, back=True)
        needed = ctx.needs_input_grad[4:6]
        return None, None, *lean_gradients(ctx.again, tokens, weight, packed.flatten(2), needed)


def _rotate_(heads: Tensor, rope: Tensor, *, back: bool) -> None:
    """Rotates ``heads [B, N, 2, M, D]`` in place by ``rope [N, 2 * D]``, or by its transpose."""
    first, second = heads.chunk(2, dim=-1)
    sines, cosines = rope[:, None, None].chunk(2, dim=-1)  # [N, 1, 1, D] each
    sine1, sine2 = sines.chunk(2, dim=-1)
    cosine1, cosine2 = cosines.chunk(2, dim=-1)
    if back:
        sine1, sine2 = -sine2, -sine1
    if heads.dtype == rope.dtype:
        turned = first * cosine1
        turned.addcmul_(second, sine1, value=-1)
        second.mul_(cosine2).addcmul_(first, sine2)
        first.copy_(turned)
    else:  # tables are float32, and so is the rotation
        turned = first * cosine1 - second * sine1
        second.copy_(second * cosine2 + first * sine2)
        first.copy_(turned)
