"""DINOv3 (arXiv 2508.10104) as EoMT's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from mmseg.registry import MODELS
from timm.layers import LayerNorm
from timm.models.eva import Eva
from torch import nn

from mmseg_eomt.models.backbones.architectures import (
    GATED_ALIGNMENT,
    Architecture,
    resolve_architecture,
)
from mmseg_eomt.models.backbones.vit import ViTBackbone, padded_size

ROPE_TEMPERATURE = 100.0  # facebookresearch/dinov3
LAYER_NORM_EPS = 1e-5  # facebookresearch/dinov3; DINOv2 has 1e-6


@MODELS.register_module()
class DINOv3(ViTBackbone):
    """DINOv3's vision transformers, with rotary positions.

    Args:
        arch (str | Mapping): ``'vits16'``, ``'vits16plus'``, ``'vitb16'``, ``'vitl16'``,
            ``'vitl16plus'``, ``'vith16plus'`` or ``'vit7b16'``; or the sizes of one as a dict,
            see :func:`resolve_architecture`. Defaults to ``'vits16'``.
        patch_size (int, optional): Another patch side than the native 16, in pixels: the kernel
            of pretrained weights is resampled. Defaults to None.
        image_size (int | tuple[int, int]): Input size in pixels. No weight depends on it, for
            rotary positions fit any grid. Defaults to 512.
        in_channels (int): Channels of the input. Defaults to 3.
        num_joint_blocks (int, optional): Blocks left to the head. None takes 3 for S and B, 4 for
            L, 5 for H+ and 7B. Defaults to None.
        drop_path_rate (float): Stochastic depth of the last block; linear from 0. Defaults to 0.

    Layer scale starts as :meth:`Architecture.layer_scale` says. The other arguments are those of
    :class:`ViTBackbone`.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "vits16",
        *,
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
        sizes = resolve_architecture("dinov3", arch)
        super().__init__(
            build_dinov3(
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


def build_dinov3(
    sizes: Architecture,
    *,
    patch_size: int,
    image_size: int | tuple[int, int],
    in_channels: int,
    drop_path_rate: float,
    layer_scale: float,
) -> nn.Module:
    """timm's ``Eva`` with DINOv3's settings (as its ``*_dinov3_qkvb`` models)."""
    return Eva(
        img_size=padded_size(image_size, patch_size),
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=0,
        global_pool="",
        embed_dim=sizes.embed_dims,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        # q and v biases are zero as released, but fine-tuning moves them.
        qkv_bias=True,
        # timm truncates ratio * C to a width; the half keeps rounding from losing one.
        mlp_ratio=(sizes.mlp_dims + 0.5) / sizes.embed_dims,
        swiglu_mlp=sizes.gated_mlp,
        swiglu_align_to=GATED_ALIGNMENT if sizes.gated_mlp else 0,
        init_values=layer_scale,
        num_reg_tokens=sizes.num_registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=ROPE_TEMPERATURE,
        rope_rotate_half=True,
        use_fc_norm=False,
        norm_layer=partial(LayerNorm, eps=LAYER_NORM_EPS),
        dynamic_img_size=True,
        drop_path_rate=drop_path_rate,
    )
