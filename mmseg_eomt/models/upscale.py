"""Patch features upscaled to mask logits, with gradients for those that the loss asks for.

Shape legend: B images, C channels, h/w patch grid, Q queries, f upscaling factor, H/W size of the
mask logits, G matched queries, M most matched queries of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.models.recompute import Again, GeluDepthwise, MaskRows, norm_linear, plain_operators

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}


class UpscaleBlock(nn.Module):
    """Doubles the resolution: transposed convolution, GELU, depthwise convolution, layer norm.

    Works on ``[B, h, w, C]`` throughout, so that the transposed convolution (kernel and stride 2:
    every input pixel makes a 2x2 patch of its own) is one matrix product and the layer norm needs
    no transposition. Weights keep the shapes of ``ConvTranspose2d`` and ``Conv2d``, as in the
    published checkpoints.

    Args:
        embed_dims (int): C.
        activation (str): One of ``ACTIVATIONS``. Defaults to ``'gelu'``, as in the official code.
        eps (float): Epsilon of the layer norm. Defaults to 1e-6, likewise.
    """

    def __init__(self, embed_dims: int, *, activation: str = "gelu", eps: float = 1e-6) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.ConvTranspose2d(embed_dims, embed_dims, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(
            embed_dims, embed_dims, kernel_size=3, padding=1, groups=embed_dims, bias=False
        )
        self.norm = nn.LayerNorm(embed_dims, eps=eps)

    def forward(self, features: Tensor, *, norm: nn.Module | None = None) -> Tensor:
        """Upscales ``features [B, h, w, C]`` to ``[B, 2h, 2w, C]``."""
        normalised: Tensor = self.norm(self.before_norm(features, norm=norm))
        return normalised

    def before_norm(self, features: Tensor, *, norm: nn.Module | None = None) -> Tensor:
        """What this block's norm is handed, ``[B, 2h, 2w, C]``.

        Args:
            features (Tensor): ``[B, h, w, C]``.
            norm (nn.Module, optional): Norm that the features still have to go through.
        """
        batch, height, width, channels = features.shape
        # [C_in, C_out, 2, 2] -> [2, 2, C_out, C_in]: rows of the product are whole pixels.
        weight = self.conv1.weight.permute(2, 3, 1, 0).reshape(4 * channels, channels)
        bias = None if self.conv1.bias is None else self.conv1.bias.repeat(4)
        if norm is None:
            cells = F.linear(features, weight, bias)
        else:
            cells = norm_linear(features, norm, weight, bias)
        cells = cells.view(batch, height, width, 2, 2, channels)
        return _activated_and_mixed(cells, self.conv2.weight, self.activation)


def _activated_and_mixed(cells: Tensor, weight: Tensor, activation: str) -> Tensor:
    """Activation and depthwise convolution of ``cells [B, h, w, 2, 2, C]``: ``[B, 2h, 2w, C]``."""
    if activation != "gelu" or plain_operators():
        # A compiler fuses the copy and chooses by itself what to keep; an exporter knows these.
        image = cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        image = ACTIVATIONS[activation]()(image).permute(0, 3, 1, 2)
        mixed = F.conv2d(image, weight, padding=1, groups=cells.shape[-1])
        return mixed.permute(0, 2, 3, 1)
    kept: Tensor = GeluDepthwise.apply(cells, weight.to(cells.dtype))
    return kept


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
    features: Tensor = last_norm(blocks)(upscaled_before_norm(blocks, patches, grid))
    return features


def last_norm(blocks: nn.ModuleList) -> nn.Module:
    """The norm that closes the last block."""
    norm: nn.Module = cast(UpscaleBlock, blocks[-1]).norm
    return norm


def upscaled_before_norm(blocks: nn.ModuleList, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """As :func:`upscaled`, without the norm of the last block."""
    features = patches.reshape(patches.shape[0], *grid, patches.shape[-1])
    norm: nn.Module | None = None
    for block in cast("Iterable[UpscaleBlock]", blocks):
        features = block.before_norm(features, norm=norm)
        norm = block.norm
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
    return mask_product(queries, upscaled(blocks, patches, grid))


def mask_product(queries: Tensor, features: Tensor) -> Tensor:
    """Products ``[B, Q, H, W]`` of ``queries [B, Q, C]`` and ``features [B, H, W, C]``."""
    masks = queries @ features.flatten(1, 2).transpose(1, 2)  # [B, Q, H * W]
    return masks.view(*masks.shape[:2], *features.shape[1:3])


class MaskMaps:
    """Mask logits ``[B, Q, H, W]`` of a training step.

    The loss looks at all of them to match queries with classes, but learns from the matched ones,
    a tenth or less. So the logits carry no gradient; :meth:`rows` gives some of them one, and the
    backward pass multiplies matrices of that many rows instead of Q.

    Args:
        blocks (nn.ModuleList): Upscale blocks.
        queries (Tensor): ``[B, Q, C]``, from the mask head.
        patches (Tensor): ``[B, h * w, C]``.
        grid (tuple[int, int]): (h, w).
        recompute (bool): Whether the upscaled features are made again in the backward pass instead
            of kept. Defaults to False.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        queries: Tensor,
        patches: Tensor,
        grid: tuple[int, int],
        *,
        recompute: bool = False,
    ) -> None:
        self._queries = queries
        parameters: Iterable[Tensor]
        if recompute:
            self._source = patches
            make: Callable[[Tensor], Tensor] = partial(upscaled, blocks, grid=grid)
            parameters = blocks.parameters()
        else:
            self._source = upscaled_before_norm(blocks, patches, grid)
            make = norm = last_norm(blocks)
            parameters = norm.parameters()
        self._again = Again(make, parameters, patches.device.type)
        with torch.no_grad():
            self.logits = mask_product(queries, make(self._source))

    def rows(self, queries: Tensor, slots: Tensor, num_slots: int) -> Tensor:
        """Logits of some queries, with gradients to queries, patches and upscale blocks.

        Args:
            queries (Tensor): ``[G]`` int64, image * Q + query, each at most once.
            slots (Tensor): ``[G]`` int64, places below ``num_slots`` of the queries within their
                image, each at most once an image.
            num_slots (int): M.

        Returns:
            Tensor: ``[G, H, W]``.
        """
        rows: Tensor = MaskRows.apply(
            self.logits,
            (queries, slots, num_slots),
            self._queries,
            self._again,
            self._source,
            *self._again.parameters,
        )
        return rows
