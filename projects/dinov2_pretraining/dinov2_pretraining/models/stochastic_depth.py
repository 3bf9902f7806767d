"""Stochastic depth that saves what it drops.

Shape legend: B images, T tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.models.joint_attention import block_mlp, joint_attention, layer_scales


def run_block_on_some(
    block: Any, tokens: Tensor, *, num_prefix_tokens: int, rope: Tensor | None, drop_rate: float
) -> Tensor:
    """Runs a block whose two branches see some of the images only, drawn anew for each branch.

    The branches of the other images are not computed, where drop path computes and then zeroes
    them (DINOv2, arXiv 2304.07193, section 5). What is added is scaled up by ``B / kept``, so its
    mean is that of the whole batch.

    Args:
        block (nn.Module): timm's ``Block`` or ``EvaBlock``.
        tokens (Tensor): ``[B, T, C]``.
        num_prefix_tokens (int): First tokens, which ``rope`` does not rotate.
        rope (Tensor, optional): Rotary table of the other tokens.
        drop_rate (float): Mean share of images that a branch leaves out, in [0, 1).

    Returns:
        Tensor: ``[B, T, C]``.
    """
    scales = layer_scales(block)
    some = _draw(len(tokens), drop_rate, tokens.device)
    attended = joint_attention(
        block.attn,
        tokens[some],
        norm=block.norm1,
        scale=scales[0],
        num_queries=0,
        num_prefix_tokens=num_prefix_tokens,
        rope=rope,
        patch_mask=None,
    )
    tokens = _add(tokens, some, attended)
    some = _draw(len(tokens), drop_rate, tokens.device)
    return _add(tokens, some, block_mlp(block.mlp, tokens[some], norm=block.norm2, scale=scales[1]))


def _draw(batch: int, drop_rate: float, device: torch.device) -> Tensor:
    """Indices of the images kept: on average a share of ``1 - drop_rate``, always one at least."""
    # Rounded up or down by chance, or small batches would have another rate.
    kept = int(batch * (1 - drop_rate) + float(torch.rand(())))
    return torch.randperm(batch, device=device)[: max(1, kept)]


def _add(tokens: Tensor, some: Tensor, branch: Tensor) -> Tensor:
    scale = len(tokens) / len(some)
    return tokens.index_add(0, some, branch.to(tokens.dtype), alpha=scale)
