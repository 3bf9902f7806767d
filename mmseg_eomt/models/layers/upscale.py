"""Upscaling of patch features to the resolution of mask logits.

Shape legend: B images, C channels, h/w patch grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class UpscaleBlock(nn.Module):
    """Doubles the resolution: transposed convolution, GELU, depthwise convolution, layer norm.

    Works on ``[B, h, w, C]`` throughout, so that the transposed convolution (kernel and stride 2:
    every input pixel makes a 2x2 patch of its own) is one matrix product and the layer norm needs
    no transposition. Weights keep the shapes of ``ConvTranspose2d`` and ``Conv2d``, as in the
    published checkpoints.

    Args:
        embed_dims (int): C.
        eps (float): Epsilon of the layer norm. Defaults to 1e-6, as in the official code.
    """

    def __init__(self, embed_dims: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(embed_dims, embed_dims, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(
            embed_dims, embed_dims, kernel_size=3, padding=1, groups=embed_dims, bias=False
        )
        self.norm = nn.LayerNorm(embed_dims, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """Upscales ``features [B, h, w, C]`` to ``[B, 2h, 2w, C]``."""
        batch, height, width, channels = features.shape
        # [C_in, C_out, 2, 2] -> [2, 2, C_out, C_in]: rows of the product are whole pixels.
        weight = self.conv1.weight.permute(2, 3, 1, 0).reshape(4 * channels, channels)
        bias = None if self.conv1.bias is None else self.conv1.bias.repeat(4)
        cells = F.linear(features, weight, bias).view(batch, height, width, 2, 2, channels)
        image = cells.transpose(2, 3).reshape(batch, 2 * height, 2 * width, channels)
        image = F.gelu(image).permute(0, 3, 1, 2)  # a channels-last view [B, C, 2h, 2w]
        image = self.conv2(image).permute(0, 2, 3, 1)
        normalised: Tensor = self.norm(image)
        return normalised


def reduce_to_grid(mask_logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear reduction (``align_corners=False``, no antialias) of mask logits to the patch grid.

    For an even factor it reads the central 2x2 of each cell and averages it.

    Args:
        mask_logits (Tensor): ``[B, Q, f * h, f * w]`` with an even factor f, or f = 1.
        grid (tuple[int, int]): (h, w).

    Returns:
        Tensor: ``[B, Q, h, w]``.
    """
    factor = mask_logits.shape[-1] // grid[1]
    if factor == 1:
        return mask_logits
    first, second = factor // 2 - 1, factor // 2
    rows = mask_logits[:, :, first::factor] + mask_logits[:, :, second::factor]
    return (rows[..., first::factor] + rows[..., second::factor]) / 4


def upscaled(blocks: nn.ModuleList, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Runs upscale blocks on ``patches [B, h * w, C]``; returns ``[B, f * h, f * w, C]``."""
    features = patches.reshape(patches.shape[0], *grid, patches.shape[-1])
    for block in blocks:
        features = block(features)
    return features


def mask_logits(
    blocks: nn.ModuleList, queries: Tensor, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Mask logits ``[B, Q, f * h, f * w]``: products of queries and upscaled patches.

    Args:
        blocks (nn.ModuleList): Upscale blocks.
        queries (Tensor): ``[B, Q, C]``, from the mask head.
        patches (Tensor): ``[B, h * w, C]``.
        grid (tuple[int, int]): (h, w).

    Returns:
        Tensor: ``[B, Q, f * h, f * w]``.
    """
    features = upscaled(blocks, patches, grid)  # [B, f*h, f*w, C]
    # In this order the gradient of the features comes out channels-last, as the layer norm wants
    # it; the logits, which are transposed instead, are a quarter of that or less.
    masks = features.flatten(1, 2) @ queries.transpose(1, 2)  # [B, f*h * f*w, Q]
    batch, height, width, _ = features.shape
    return masks.transpose(1, 2).contiguous().view(batch, -1, height, width)
