"""Transformer blocks that process queries, prefix and patches together.

Shape legend: B images, Q queries, P prefix tokens (cls + registers), N patches, T = Q + P + N
tokens, C channels, M attention heads, D = C / M.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor


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
    attended = joint_attention(
        block.attn,
        block.norm1(tokens),
        num_queries=num_queries,
        num_prefix_tokens=num_prefix_tokens,
        rope=rope,
        patch_mask=patch_mask,
    )
    if hasattr(block, "ls1"):
        tokens = tokens + block.drop_path1(block.ls1(attended))
        hidden: Tensor = block.ls2(block.mlp(block.norm2(tokens)))
    elif hasattr(block, "gamma_1"):
        tokens = tokens + block.drop_path1(_scaled(attended, block.gamma_1))
        hidden = _scaled(block.mlp(block.norm2(tokens)), block.gamma_2)
    else:
        raise TypeError(
            f"{type(block).__name__} is no block that EoMT can join queries to: expected timm's "
            "Block (VisionTransformer) or EvaBlock (Eva). Use a backbone of one of these families."
        )
    joined: Tensor = tokens + block.drop_path2(hidden)
    return joined


def joint_attention(
    attention: Any,
    tokens: Tensor,
    *,
    num_queries: int,
    num_prefix_tokens: int,
    rope: Tensor | None,
    patch_mask: Tensor | None,
) -> Tensor:
    """Self-attention in which the query rows may have a mask of their own.

    Rows that are masked and rows that are not attend apart, so no mask of T x T is ever built and
    the unmasked rows take the fast kernel. Equal to dense attention with the full mask.

    Args: as :func:`run_joint_block`, with ``tokens`` already normalised.

    Returns:
        Tensor: ``[B, T, C]``.
    """
    batch, length, _ = tokens.shape
    query, key, value = _project(attention, tokens)  # [B, M, T, D] each
    if rope is not None:
        start = num_queries + num_prefix_tokens
        query = _rotate(query, rope, start, half=attention.rotate_half).type_as(value)
        key = _rotate(key, rope, start, half=attention.rotate_half).type_as(value)
    dropout = attention.attn_drop.p if attention.training else 0.0
    if patch_mask is None:
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
        mixed = mixed * attention.gate(tokens).sigmoid()
    output: Tensor = attention.proj_drop(attention.proj(mixed))
    return output


def _project(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projects ``tokens [B, T, C]`` to query, key and value, ``[B, M, T, D]`` each."""
    batch, length, _ = tokens.shape
    heads = attention.num_heads
    if attention.qkv is None:
        parts = [
            project(tokens).view(batch, length, heads, -1).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        query, key, value = parts
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        packed = F.linear(tokens, attention.qkv.weight, bias)
        query, key, value = packed.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return attention.q_norm(query), attention.k_norm(key), value


def _rotate(heads: Tensor, rope: Tensor, start: int, *, half: bool) -> Tensor:
    """Rotates the tokens from ``start`` on of ``heads [B, M, T, D]`` by ``rope [N, 2 * D]``."""
    rotated = apply_rot_embed_cat(heads[:, :, start:], rope, half=half)
    return torch.cat((heads[:, :, :start].type_as(rotated), rotated), dim=2)


def _scaled(hidden: Tensor, gamma: Tensor | None) -> Tensor:
    return hidden if gamma is None else gamma * hidden
