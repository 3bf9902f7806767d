"""Mask logits of all queries, with gradients for those that the loss asks for.

Shape legend: B images, Q queries, C channels, h/w patch grid, H/W size of the mask logits,
G matched queries, M most matched queries of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_eomt.models.layers.lean import Again
from mmseg_eomt.models.layers.upscale import (
    last_norm,
    mask_product,
    upscaled,
    upscaled_before_norm,
)


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
        rows: Tensor = _Rows.apply(
            self.logits,
            (queries, slots, num_slots),
            self._queries,
            self._again,
            self._source,
            *self._again.parameters,
        )
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        places: tuple[Tensor, Tensor, int],
        queries: Tensor,
        again: Again,
        source: Tensor,
        *_: Tensor,
    ) -> Tensor:
        index, slots, ctx.num_slots = places
        ctx.again, ctx.dtype = again, logits.dtype
        ctx.save_for_backward(queries, index, slots, source)
        return logits.flatten(0, 1).index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, index, slots, source = ctx.saved_tensors
        batch, num_queries = queries.shape[:2]
        places = index // num_queries * ctx.num_slots + slots

        def padded(rows: Tensor) -> Tensor:
            """``[G, *]`` as ``[B, M, *]``, zero where an image has fewer."""
            rows = rows.to(ctx.dtype)
            empty = rows.new_zeros(batch * ctx.num_slots, rows.shape[1])
            return empty.index_copy_(0, places, rows).view(batch, ctx.num_slots, -1)

        to_maps = padded(gradient.flatten(1))  # [B, M, H * W]
        chosen = padded(queries.flatten(0, 1).index_select(0, index))  # [B, M, C]
        to_queries = torch.zeros_like(queries).flatten(0, 1)

        def to_features(features: Tensor) -> Tensor:
            pixels = features.flatten(1, 2).to(ctx.dtype)  # [B, H * W, C]
            to_chosen = (to_maps @ pixels).flatten(0, 1).index_select(0, places)  # [G, C]
            to_queries.index_copy_(0, index, to_chosen.to(queries.dtype))
            return (to_maps.transpose(1, 2) @ chosen).view(features.shape)

        to_sources = ctx.again.backward(source, to_features)
        return None, None, to_queries.view_as(queries), None, *to_sources
