"""A backbone of mmseg_eomt run whole, with a token in place of hidden patches.

Shape legend: B images, P prefix tokens (cls + registers), N patches = h * w, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from dinov2_pretraining.models.stochastic_depth import run_block_on_some
from mmseg_eomt.models.recompute import recomputed
from mmseg_eomt.models.vit import ViTBackbone


class MaskedViT(nn.Module):
    """All blocks of a ``ViTBackbone``, and the mask token that it does not have.

    Args:
        backbone (dict): Config of ``DINOv2``, ``DINOv3`` or ``TimmViT``. Its ``drop_path_rate``
            must be 0, see ``drop_path_rate``.
        drop_path_rate (float): Stochastic depth, the same in all blocks as in DINOv2; see
            :func:`run_block_on_some`. Defaults to 0.

    Raises:
        ValueError: If the backbone is of another kind, freezes blocks or drops paths itself.
    """

    def __init__(self, backbone: dict[str, Any], *, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if backbone.get("drop_path_rate") or backbone.get("frozen_blocks"):
            raise ValueError(
                "model.backbone has drop_path_rate or frozen_blocks: set model.drop_path_rate (the "
                "same in all blocks, student only) and freeze_backbone of PretrainScheduleHook."
            )
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(
                f"model.drop_path_rate is {drop_path_rate}: it must lie in [0, 1); DINOv2 has 0.3."
            )
        self.backbone: Any = MODELS.build(backbone)
        if not isinstance(self.backbone, ViTBackbone):
            raise ValueError(
                f"model.backbone is a {type(self.backbone).__name__}: pretraining needs DINOv2, "
                "DINOv3 or TimmViT."
            )
        self.drop_path_rate = drop_path_rate
        self.mask_token = nn.Parameter(torch.zeros(1, self.backbone.embed_dims))

    @property
    def embed_dims(self) -> int:
        """C."""
        return int(self.backbone.embed_dims)

    @property
    def num_prefix_tokens(self) -> int:
        """P."""
        return int(self.backbone.num_prefix_tokens)

    def tokens(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Runs all blocks.

        Args:
            images (Tensor): ``[B, 3, H, W]``, normalised.
            masks (Tensor, optional): Bool ``[B, N]``, True where the mask token takes the patch's
                place. Defaults to None.

        Returns:
            Tensor: ``[B, P + N, C]``, before the final norm.

        Raises:
            ValueError: If the masks are for another grid.
        """
        backbone = self.backbone
        patches, grid = backbone.embed_patches(images)
        if masks is not None:
            if masks.shape != patches.shape[:2]:
                raise ValueError(
                    f"Masks are {tuple(masks.shape)}, images of {tuple(images.shape[-2:])} pixels "
                    f"have {grid[0]} x {grid[1]} patches of {backbone.patch_size}: make masks of "
                    f"{tuple(patches.shape[:2])}."
                )
            patches = torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)
        tokens: Tensor = backbone.add_prefix(patches, grid)
        inputs: dict[str, Any] = {
            "num_prefix_tokens": self.num_prefix_tokens,
            "rope": backbone.rope_of(grid, tokens.device),
        }
        run: Callable[..., Tensor] = backbone.run_block
        if self.training and self.drop_path_rate > 0:
            run, inputs["drop_rate"] = run_block_on_some, self.drop_path_rate
        else:
            inputs["num_queries"] = 0
        for block in backbone.vit.blocks:
            if backbone.with_cp and self.training:
                tokens = recomputed(run, block, tokens, **inputs)
            else:
                tokens = run(block, tokens, **inputs)
        return tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm of ``[..., C]``, to be run on the tokens that are used."""
        normed: Tensor = self.backbone.vit.norm(tokens)
        return normed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of whole images, normed.

        Args:
            images (Tensor): ``[B, 3, H, W]``, normalised.

        Returns:
            tuple[Tensor, Tensor]: Class tokens ``[B, C]`` and patches ``[B, N, C]``.
        """
        tokens = self.norm(self.tokens(images))
        return tokens[:, 0], tokens[:, self.num_prefix_tokens :]
