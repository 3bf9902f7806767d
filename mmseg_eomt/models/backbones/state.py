"""What a backbone hands to the head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderState:
    """Tokens after the plain blocks, and all that is needed to run the joint ones.

    Shape legend: B images, P prefix tokens (cls + registers), N patches = h * w, C channels.

    Attributes:
        tokens (Tensor): ``[B, P + N, C]``, prefix first, then the patches row by row.
        grid (tuple[int, int]): ``(h, w)``, the patches of the (padded) input.
        rope (Tensor | None): ``[N, 2 * head_dim]``, sines then cosines of the patches, float32.
            None for a backbone without rotary positions.
        blocks (tuple[nn.Module, ...]): The joint blocks, first to last, not run yet. They belong
            to the backbone.
        norm (nn.Module): The backbone's final norm.
        num_prefix_tokens (int): P.
        image_size (tuple[int, int]): ``(H, W)`` of the input in pixels, before padding.
        patch_size (int): Side of a patch in pixels. The padded input is ``grid * patch_size``;
            what lies right of ``W`` or below ``H`` is padding.
        recompute (bool): Whether the joint blocks, too, recompute activations in the backward pass.
    """

    tokens: Tensor
    grid: tuple[int, int]
    rope: Tensor | None
    blocks: tuple[nn.Module, ...]
    norm: nn.Module
    num_prefix_tokens: int
    image_size: tuple[int, int]
    patch_size: int
    recompute: bool = False
