"""The encoder part of EoMT: a timm vision transformer that stops before its joint blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, initialize
from mmseg.registry import WEIGHT_INITIALIZERS
from timm.layers import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from mmseg_eomt.models.joint_attention import run_joint_block
from mmseg_eomt.models.positions import (
    GridCache,
    keys_matrix,
    resample_matrix,
    resample_table,
    rope_angles,
    rope_table,
)
from mmseg_eomt.models.recompute import recomputed


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


class ViTBackbone(BaseModule):  # type: ignore[misc]  # mmengine is untyped
    """Runs the plain blocks of a timm ``VisionTransformer`` or ``Eva``.

    Inputs of any size are taken: what is no multiple of the patch size is padded with zeros at
    the right and at the bottom (after normalisation, so with the mean colour), and the state
    records the size without padding. Nothing is ever cut off.

    Shape legend: B images, P prefix tokens (cls + registers), N patches = h * w, C channels.

    Args:
        vit (VisionTransformer | Eva): timm's module, made with ``dynamic_img_size=True`` and no
            classifier.
        num_joint_blocks (int): How many last blocks are left for the head to run.
        pretrained (str, optional): Weights to load in :meth:`init_weights`: a path, an
            ``http(s)://`` or ``file://`` URL (with ``#sha256=<hex>`` to have it checked),
            ``'timm'`` for the released weights, or ``'timm/<name>'`` or ``'hf-hub:<repository>'``.
            Meta's, timm's and transformers' layouts are told apart by content. Defaults to None.
        hub_name (str, optional): What ``pretrained='timm'`` means. Defaults to None.
        frozen_blocks (int | Literal['encoder']): How many first blocks stay as they are, the
            embeddings with them; ``'encoder'`` freezes all that comes before the joint blocks.
            Frozen parts get no gradient and stay in eval mode. Defaults to 0.
        with_cp (bool): Whether the activations of blocks, joint ones included, are recomputed in
            the backward pass. Defaults to False.
        rope_rescale (float, optional): r of DINOv3's augmentation of rotary positions: in
            training, one factor a forward pass, log-uniform in [1/r, r]. Defaults to None, off.
        init_cfg (dict, optional): mmengine's initialisation. Excludes ``pretrained``.
    """

    def __init__(
        self,
        vit: Any,
        *,
        num_joint_blocks: int,
        pretrained: str | None = None,
        hub_name: str | None = None,
        frozen_blocks: int | Literal["encoder"] = 0,
        with_cp: bool = False,
        rope_rescale: float | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if pretrained is not None and init_cfg is not None:
            raise ValueError(
                f"Both pretrained={pretrained!r} and init_cfg={init_cfg!r} are given. Keep one: "
                "pretrained understands Meta's, timm's and transformers' files."
            )
        self.vit: Any = vit
        self.embed_dims: int = vit.embed_dim
        self.depth = len(vit.blocks)
        self.num_heads: int = vit.blocks[0].attn.num_heads
        self.patch_size: int = _square_patch(vit)
        self.in_channels: int = vit.patch_embed.proj.in_channels
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        if not 1 <= num_joint_blocks <= self.depth:
            raise ValueError(
                f"num_joint_blocks={num_joint_blocks} of a backbone with {self.depth} blocks: "
                f"choose 1 to {self.depth}."
            )
        self.num_joint_blocks = num_joint_blocks
        self.pretrained = pretrained
        self.hub_name = hub_name
        self.with_cp = with_cp
        self.rope_rescale = self._check_rescale(rope_rescale)
        self.num_frozen_blocks = self._count_frozen(frozen_blocks)
        self._tables = GridCache()
        self._fixed: tuple[Tensor | None, Tensor | None] | None = None
        self._any_grid = False
        # `compile_blocks` puts a compiled one in its place.
        self.run_block: Callable[..., Tensor] = run_joint_block
        self._freeze()

    # --- forward ---------------------------------------------------------------------------

    def forward(self, images: Tensor) -> EncoderState:
        """Embeds the images and runs all blocks before the joint ones.

        Args:
            images (Tensor): ``[B, in_channels, H, W]``, normalised.

        Returns:
            EncoderState: Tokens ``[B, P + N, C]`` and what is needed to go on.
        """
        patches, grid = self.embed_patches(images)
        tokens = self.add_prefix(patches, grid)
        rope = self.rope_of(grid, tokens.device)
        split = self.depth - self.num_joint_blocks
        for index, block in enumerate(self.vit.blocks[:split]):
            inputs = {"num_queries": 0, "num_prefix_tokens": self.num_prefix_tokens, "rope": rope}
            if self.with_cp and self.training and index >= self.num_frozen_blocks:
                tokens = recomputed(self.run_block, block, tokens, **inputs)
            else:
                tokens = self.run_block(block, tokens, **inputs)
        return EncoderState(
            tokens=tokens,
            grid=grid,
            rope=rope,
            blocks=tuple(self.vit.blocks[split:]),
            norm=self.vit.norm,
            num_prefix_tokens=self.num_prefix_tokens,
            image_size=(images.shape[-2], images.shape[-1]),
            patch_size=self.patch_size,
            recompute=self.with_cp if self.training else False,
        )

    def prepare_export(self, grid: tuple[int, int] | None) -> None:
        """Says how position tables get into an exported graph. Only for a copy to be exported.

        Args:
            grid (tuple[int, int], optional): ``(h, w)`` of all inputs from now on: its tables
                become constants. None computes them in the graph, for inputs of any size.
        """
        self._fixed, self._any_grid = None, grid is None
        if grid is not None:
            with torch.no_grad():
                table, device = self._position_table(grid), self.vit.patch_embed.proj.weight.device
                self._fixed = (table, self.rope_of(grid, device))

    def embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Turns ``[B, in_channels, H, W]`` into patches ``[B, N, C]`` and their grid.

        They have no positions yet: those come with :meth:`add_prefix`.
        """
        below, right = (-side % self.patch_size for side in images.shape[-2:])
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        patches = self.vit.patch_embed(images)  # [B, h, w, C]
        return patches.flatten(1, 2), (patches.shape[1], patches.shape[2])

    def add_prefix(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turns patches ``[B, N, C]`` into the first block's tokens ``[B, P + N, C]``."""
        vit, tokens = self.vit, patches
        table = self._position_table(grid)
        if table is not None and vit.no_embed_class:
            tokens = tokens + table
        prefix = [
            token.expand(tokens.shape[0], -1, -1)
            for token in (vit.cls_token, vit.reg_token)
            if token is not None
        ]
        tokens = torch.cat((*prefix, tokens), dim=1)
        if table is not None and not vit.no_embed_class:
            tokens = tokens + table
        embedded: Tensor = vit.norm_pre(vit.pos_drop(tokens))
        return embedded

    def _position_table(self, grid: tuple[int, int]) -> Tensor | None:
        """Learned positions for ``grid``, ``[1, N, C]`` or ``[1, P + N, C]``; None without any."""
        if self._fixed is not None:
            return self._fixed[0]
        table: Tensor | None = self.vit.pos_embed
        stored = self.vit.patch_embed.grid_size
        if table is None or (not self._any_grid and grid == stored):
            return table
        device = table.device
        make = keys_matrix if self._any_grid else resample_matrix
        rows, columns = (
            self._tables.get(
                ("resample", old, new, device),
                lambda old=old, new=new: make(old, new, device=device),  # type: ignore[misc]
            )
            for old, new in zip(stored, grid, strict=True)
        )
        prefix = 0 if self.vit.no_embed_class else self.num_prefix_tokens
        patches = resample_table(table[:, prefix:], stored, rows, columns)
        return torch.cat((table[:, :prefix], patches), dim=1) if prefix else patches

    def rope_of(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Rotary table for ``grid``, ``[N, 2 * head_dim]``; None without rotary positions."""
        if self._fixed is not None:
            return self._fixed[1]
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return None
        if not _is_dinov3_rope(rope):
            return self._tables.get(("rope", grid, device), lambda: rope.get_embed(shape=grid))

        def angles() -> Tensor:
            return rope_angles(
                grid, head_dims=rope.dim, temperature=rope.temperature, device=device
            )

        if self.rope_rescale is not None and self.training:
            bound = math.log(self.rope_rescale)
            factor = torch.empty((), device=device).uniform_(-bound, bound).exp()
            return rope_table(self._tables.get(("angles", grid, device), angles) * factor)
        return self._tables.get(("rope", grid, device), lambda: rope_table(angles()))

    # --- weights ---------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Loads ``pretrained``, on every rank; without it timm's own initialisation stays.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it does not fit; missing and unexpected keys are listed.
        """
        if self.pretrained is not None:
            # Registered by checkpoints, which stand above models and know the files' layouts.
            load = dict(type="PretrainedViT", source=self.pretrained, hub_name=self.hub_name)
            WEIGHT_INITIALIZERS.build(load)(self)
        elif self.init_cfg is not None:
            initialize(self, self.init_cfg)
        self._is_init = True

    def get_block_index(self, name: str) -> int:
        """Tells which block a parameter counts with, for layer-wise learning rates.

        Args:
            name (str): Parameter name relative to the backbone, e.g. ``'vit.blocks.3.norm1.bias'``.

        Returns:
            int: The block's index; 0 for embeddings, prefix tokens and positions; ``depth - 1``
            for the final norm.
        """
        parts = name.split(".")
        if parts[:2] == ["vit", "blocks"]:
            return int(parts[2])
        return self.depth - 1 if parts[:2] == ["vit", "norm"] else 0

    # --- freezing --------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ViTBackbone:
        """Sets the mode; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.num_frozen_blocks == 0:
            return []
        vit = self.vit
        return [
            vit.patch_embed,
            vit.pos_drop,
            vit.norm_pre,
            *vit.blocks[: self.num_frozen_blocks],
        ]

    def _freeze(self) -> None:
        if self.num_frozen_blocks == 0:
            return
        for name, parameter in self.vit.named_parameters():
            parts = name.split(".")
            if parts[0] == "norm":
                continue
            if parts[0] != "blocks" or int(parts[1]) < self.num_frozen_blocks:
                parameter.requires_grad_(False)
        self.train(self.training)

    def _count_frozen(self, frozen_blocks: int | str) -> int:
        if frozen_blocks == "encoder":
            return self.depth - self.num_joint_blocks
        if not isinstance(frozen_blocks, int) or not 0 <= frozen_blocks <= self.depth:
            raise ValueError(
                f"frozen_blocks={frozen_blocks!r} of a backbone with {self.depth} blocks: choose "
                f"0 to {self.depth}, or 'encoder' for all before the joint blocks."
            )
        return frozen_blocks

    def _check_rescale(self, rope_rescale: float | None) -> float | None:
        if rope_rescale is None:
            return None
        if not _is_dinov3_rope(getattr(self.vit, "rope", None)):
            raise ValueError(
                f"rope_rescale={rope_rescale} needs DINOv3's rotary positions, which "
                f"{type(self).__name__} does not have here. Leave it None."
            )
        if rope_rescale < 1:
            raise ValueError(f"rope_rescale={rope_rescale} must be at least 1 (DINOv3 used 2).")
        return rope_rescale


def padded_size(image_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """``image_size`` (side, or height and width, in pixels) up to whole patches."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height + -height % patch_size, width + -width % patch_size


def _is_dinov3_rope(rope: Any) -> bool:
    """Whether `rope_angles` and `rope_table` give the table of timm's module ``rope``."""
    return (
        isinstance(rope, RotaryEmbeddingDinoV3)
        and rope.temperature is not None
        and rope.min_period is None
        and rope.max_period is None
        and rope.normalize_coords == "separate"
        and rope.grid_offset == 0
        and rope.grid_indexing == "ij"
        and rope.rotate_half
    )


def _square_patch(vit: Any) -> int:
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise ValueError(
            f"The patch embedding {type(vit.patch_embed).__name__} of {type(vit).__name__} is not "
            "supported: choose a timm model with a plain PatchEmbed."
        )
    height, width = vit.patch_embed.patch_size
    if height != width:
        raise ValueError(f"Patches of {height}x{width} pixels are not supported: make them square.")
    return int(height)
