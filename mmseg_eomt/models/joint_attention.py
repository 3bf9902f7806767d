"""Transformer blocks that process queries, prefix and patches together.

Shape legend: B images, Q queries, P prefix tokens (cls + registers), N patches, T = Q + P + N
tokens, C channels, M attention heads, D = C / M.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, apply_rot_embed_cat
from torch import Tensor, nn

from mmseg_eomt.models.recompute import (
    Again,
    RotatedHeads,
    exporting,
    gelu_linear,
    in_autocast_dtype,
    norm_linear,
    plain_operators,
)


def run_joint_block(
    block: Any,
    tokens: Tensor,
    *,
    num_queries: int,
    num_prefix_tokens: int,
    rope: Tensor | None = None,
    patch_mask: Tensor | None = None,
) -> Tensor:
    """Runs one pre-norm block of a timm ``VisionTransformer`` or ``Eva`` on queries and tokens.

    Only query rows on patch columns can be masked: queries always see all queries and the prefix,
    and every other row sees everything (EoMT, section 3.2 of arXiv 2503.19108).

    Args:
        block (nn.Module): timm's ``Block`` or ``EvaBlock``.
        tokens (Tensor): ``[B, T, C]``, in the order queries, prefix, patches.
        num_queries (int): Q.
        num_prefix_tokens (int): P. Queries and prefix are not rotated.
        rope (Tensor, optional): ``[N, 2 * D]``, sines then cosines of the patches.
        patch_mask (Tensor, optional): Boolean ``[B, Q, N]``, True where a query may look at a
            patch. None masks nothing.

    Returns:
        Tensor: ``[B, T, C]``.

    Raises:
        TypeError: If the block is of another kind.
    """
    scales = layer_scales(block)
    attended = joint_attention(
        block.attn,
        tokens,
        norm=block.norm1,
        scale=scales[0],
        num_queries=num_queries,
        num_prefix_tokens=num_prefix_tokens,
        rope=rope,
        patch_mask=patch_mask,
    )
    tokens = tokens + block.drop_path1(attended)
    hidden = block_mlp(block.mlp, tokens, norm=block.norm2, scale=scales[1])
    joined: Tensor = tokens + block.drop_path2(hidden)
    return joined


def layer_scales(block: Any) -> tuple[Tensor | None, Tensor | None]:
    """The layer scales ``[C]`` of a block's attention and MLP; None where it has none.

    Raises:
        TypeError: If it is neither timm's ``Block`` nor its ``EvaBlock``.
    """
    if hasattr(block, "ls1"):
        return getattr(block.ls1, "gamma", None), getattr(block.ls2, "gamma", None)
    if hasattr(block, "gamma_1"):
        return block.gamma_1, block.gamma_2
    raise TypeError(
        f"{type(block).__name__} is no block that EoMT can join queries to: expected timm's "
        "Block (VisionTransformer) or EvaBlock (Eva). Use a backbone of one of these families."
    )


def joint_attention(
    attention: Any,
    tokens: Tensor,
    *,
    norm: nn.Module,
    scale: Tensor | None,
    num_queries: int,
    num_prefix_tokens: int,
    rope: Tensor | None,
    patch_mask: Tensor | None,
) -> Tensor:
    """Self-attention in which the query rows may have a mask of their own.

    Rows that are masked and rows that are not attend apart, so no mask of T x T is ever built and
    the unmasked rows take the fast kernel. Equal to dense attention with the full mask.

    Args: as :func:`run_joint_block`, with the ``norm`` that ``tokens`` go through first and the
        layer ``scale [C]`` of the result.

    Returns:
        Tensor: ``[B, T, C]``.
    """
    batch, length, _ = tokens.shape
    query, key, value = project_heads(
        attention, tokens, norm=norm, rope=rope, start=num_queries + num_prefix_tokens
    )
    dropout = attention.attn_drop.p if attention.training else 0.0
    if exporting():
        # Spelled out: fewer operators than an exporter makes of it, in the pattern runtimes know.
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed = weights.softmax(-1) @ value
    elif patch_mask is None:
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    else:
        mask = F.pad(patch_mask, (length - patch_mask.shape[-1], 0), value=True)  # [B, Q, T]
        masked = F.scaled_dot_product_attention(
            query[:, :, :num_queries], key, value, attn_mask=mask[:, None], dropout_p=dropout
        )
        free = F.scaled_dot_product_attention(
            query[:, :, num_queries:], key, value, dropout_p=dropout
        )
        mixed = torch.cat((masked, free), dim=2)
    mixed = attention.norm(mixed.transpose(1, 2).reshape(batch, length, -1))
    if attention.gate is not None:
        mixed = mixed * attention.gate(norm(tokens)).sigmoid()
    weight, bias = _scaled(attention.proj, scale)
    output: Tensor = attention.proj_drop(F.linear(mixed, weight, bias))
    return output


def block_mlp(mlp: Any, tokens: Tensor, *, norm: nn.Module, scale: Tensor | None) -> Tensor:
    """Norm, timm's ``Mlp`` and layer scale in the form that keeps less; other MLPs as they are."""
    if type(mlp) is Mlp and _is_plain(mlp):
        hidden = norm_linear(tokens, norm, mlp.fc1.weight, mlp.fc1.bias)
        return gelu_linear(hidden, *_scaled(mlp.fc2, scale))
    output: Tensor = mlp(norm(tokens))
    return output if scale is None else scale * output


def _is_plain(mlp: Any) -> bool:
    """Whether nothing but an exact GELU lies between and after the two linear layers."""
    dropout = mlp.training and (mlp.drop1.p > 0 or mlp.drop2.p > 0)
    gelu = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    linear = type(mlp.fc1) is nn.Linear and type(mlp.fc2) is nn.Linear
    return gelu and linear and not dropout and isinstance(mlp.norm, nn.Identity)


def _scaled(linear: Any, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of ``scale * linear(...)``: scaling these keeps no activation."""
    weight, bias = linear.weight, linear.bias
    if scale is None:
        return weight, bias
    return scale[:, None] * weight, None if bias is None else scale * bias


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
            found = RotatedHeads.apply(layout, rope, again, tokens, weight, bias, *again.parameters)
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


def fold_weights(vit: Any) -> None:
    """Folds layer scales and joins biases of all blocks of a timm ``VisionTransformer`` or ``Eva``.

    In place. Predictions stay the same up to float32 rounding; the weights are no longer those of
    a file.
    """
    for block in vit.blocks:
        _fold_layer_scales(block)
        _join_biases(block.attn)


def _fold_layer_scales(block: Any) -> None:
    """Multiplies the layer scales of timm's ``Block`` or ``EvaBlock`` into its projections."""
    for number, project in ((1, block.attn.proj), (2, block.mlp.fc2)):
        old, new = f"gamma_{number}", f"ls{number}"
        if getattr(block, old, None) is not None:
            _scale(project, getattr(block, old))
            setattr(block, old, None)
        elif hasattr(getattr(block, new, None), "gamma"):
            _scale(project, getattr(block, new).gamma)
            setattr(block, new, nn.Identity())


@torch.no_grad()
def _scale(linear: nn.Linear, gamma: Tensor) -> None:
    linear.weight.mul_(gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(gamma)


def _join_biases(attention: Any) -> None:
    """Gives the joint projection of ``EvaAttention`` its bias, which is stored in three parts."""
    if attention.qkv is None or getattr(attention, "q_bias", None) is None:
        return
    parts = (attention.q_bias, attention.k_bias, attention.v_bias)
    attention.qkv.bias = nn.Parameter(torch.cat(parts), requires_grad=False)
    attention.q_bias = attention.v_bias = None
    attention.k_bias = None
