"""DINOv2 (arXiv 2304.07193, registers: arXiv 2309.16588) as EoMT's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mmseg.registry import MODELS
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mmseg_eomt.models.backbones.architectures import Architecture, resolve_architecture
from mmseg_eomt.models.backbones.vit import ViTBackbone, padded_size


@MODELS.register_module()
class DINOv2(ViTBackbone):
    """DINOv2 with or without registers.

    Args:
        arch (str | Mapping): ``'vits14'``, ``'vitb14'``, ``'vitl14'`` or ``'vitg14'``, with
            ``'-noreg'`` behind it for the one without registers; or the sizes of one as a dict,
            see :func:`resolve_architecture`. Defaults to ``'vits14'``.
        registers (bool): False means the same as ``'-noreg'``. Defaults to True.
        patch_size (int, optional): Another patch side than the native 14, in pixels: kernel and
            position table of pretrained weights are resampled. Defaults to None.
        image_size (int | tuple[int, int]): Input size in pixels whose grid the position table is
            stored at. Other inputs are interpolated to as they come. Defaults to 512.
        in_channels (int): Channels of the input. Defaults to 3.
        num_joint_blocks (int, optional): Blocks left to the head. None takes 3 for S and B, 4 for
            L, 5 for g. Defaults to None.
        drop_path_rate (float): Stochastic depth of the last block; linear from 0. Defaults to 0.

    Layer scale starts as :meth:`Architecture.layer_scale` says. The other arguments are those of
    :class:`ViTBackbone`.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "vits14",
        *,
        registers: bool = True,
        patch_size: int | None = None,
        image_size: int | tuple[int, int] = 512,
        in_channels: int = 3,
        num_joint_blocks: int | None = None,
        pretrained: str | None = None,
        frozen_blocks: int | Literal["encoder"] = 0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        rope_rescale: float | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if not registers:
            arch = _without_registers(arch)
        sizes = resolve_architecture("dinov2", arch)
        super().__init__(
            build_dinov2(
                sizes,
                patch_size=patch_size or sizes.patch_size,
                image_size=image_size,
                in_channels=in_channels,
                drop_path_rate=drop_path_rate,
                layer_scale=sizes.layer_scale(pretrained),
            ),
            num_joint_blocks=num_joint_blocks or sizes.num_joint_blocks,
            pretrained=pretrained,
            hub_name=sizes.hub_name,
            frozen_blocks=frozen_blocks,
            with_cp=with_cp,
            rope_rescale=rope_rescale,
            init_cfg=init_cfg,
        )


def build_dinov2(
    sizes: Architecture,
    *,
    patch_size: int,
    image_size: int | tuple[int, int],
    in_channels: int,
    drop_path_rate: float,
    layer_scale: float,
) -> nn.Module:
    """timm's ``VisionTransformer`` with DINOv2's settings (as its ``*_reg4_dinov2`` models)."""
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    hidden = sizes.mlp_dims * 2 if sizes.gated_mlp else sizes.mlp_dims  # both halves packed
    return VisionTransformer(
        img_size=padded_size(image_size, patch_size),
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=0,
        global_pool="",
        embed_dim=sizes.embed_dims,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        # timm truncates ratio * C to a width; the half keeps rounding from losing one.
        mlp_ratio=(hidden + 0.5) / sizes.embed_dims,
        init_values=layer_scale,
        reg_tokens=sizes.num_registers,
        # With registers timm folds cls' own position into the cls token.
        no_embed_class=sizes.num_registers > 0,
        dynamic_img_size=True,
        drop_path_rate=drop_path_rate,
        **(gated if sizes.gated_mlp else {}),
    )


def _without_registers(arch: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(arch, str):
        return arch if arch.endswith("-noreg") else f"{arch}-noreg"
    return {**arch, "num_registers": 0}
