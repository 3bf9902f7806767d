"""DINOv2 (arXiv 2304.07193), DINOv3 (arXiv 2508.10104) and any ViT of timm as EoMT's encoder.

Registers of DINOv2: arXiv 2309.16588.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import timm
import torch
from mmseg.registry import MODELS
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mmseg_eomt.models.architectures import (
    GATED_ALIGNMENT,
    Architecture,
    default_num_joint_blocks,
    resolve_architecture,
)
from mmseg_eomt.models.vit import ViTBackbone, padded_size


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


@MODELS.register_module()
class TimmViT(ViTBackbone):
    """A timm ``VisionTransformer`` or ``Eva`` by name.

    Args:
        name (str): timm's model name, with or without the tag of its weights, such as
            ``'vit_base_patch16_224.augreg_in21k'``.
        patch_size (int, optional): Another patch side than the model's own, in pixels.
            Defaults to None.
        image_size (int | tuple[int, int]): Input size in pixels whose grid a learned position
            table is stored at. Defaults to 512.
        in_channels (int): Channels of the input. Defaults to 3.
        num_joint_blocks (int, optional): Blocks left to the head. None takes 3 up to a depth of
            12, 4 up to 24, else 5. Defaults to None.
        drop_path_rate (float): Stochastic depth of the last block; linear from 0. Defaults to 0.
        model_kwargs (dict, optional): More arguments for timm's model. Defaults to None.

    The other arguments are those of :class:`ViTBackbone`; ``pretrained='timm'`` takes the weights
    of ``name``.

    Raises:
        ValueError: If timm does not know the name, or the model is of another kind.
    """

    def __init__(
        self,
        name: str,
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
        model_kwargs: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        vit = build_timm_vit(
            name,
            patch_size=patch_size,
            image_size=image_size,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            model_kwargs=model_kwargs or {},
        )
        super().__init__(
            vit,
            num_joint_blocks=num_joint_blocks or default_num_joint_blocks(len(vit.blocks)),
            pretrained=pretrained,
            hub_name=name,
            frozen_blocks=frozen_blocks,
            with_cp=with_cp,
            rope_rescale=rope_rescale,
            init_cfg=init_cfg,
        )


def build_timm_vit(
    name: str,
    *,
    patch_size: int | None,
    image_size: int | tuple[int, int],
    in_channels: int,
    drop_path_rate: float,
    model_kwargs: dict[str, Any],
) -> Any:
    """Makes timm's model ``name`` without classifier, for inputs of any size."""
    if not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), n=6)
        raise ValueError(
            f"timm has no model {name!r}. Names close to it: {', '.join(close) or 'none'}."
        )
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "",  # keeps the final norm on all tokens
        "in_chans": in_channels,
        "dynamic_img_size": True,
        "drop_path_rate": drop_path_rate,
        **model_kwargs,
    }
    if patch_size is not None:
        arguments["patch_size"] = patch_size
    side = patch_size or _native_patch(name)
    vit = timm.create_model(name, img_size=padded_size(image_size, side), **arguments)
    _check(name, vit)
    return vit


def _native_patch(name: str) -> int:
    """Patch side of timm's model ``name``, read off a copy without storage."""
    with torch.device("meta"):
        vit = timm.create_model(name)
    embed = getattr(vit, "patch_embed", None)
    if embed is None:
        raise _unfit(name, f"{type(vit).__name__} has no patch embedding")
    return int(embed.patch_size[0])


def _check(name: str, vit: Any) -> None:
    if not isinstance(vit, VisionTransformer | Eva):
        raise _unfit(name, f"it is a {type(vit).__name__}")
    kinds = {type(block) for block in vit.blocks} - {Block, EvaBlock}
    if kinds:
        raise _unfit(name, f"its blocks are {', '.join(kind.__name__ for kind in kinds)}")
    if getattr(vit, "rope_mixed", False):
        raise _unfit(name, "its rotary positions differ from block to block")
    if isinstance(vit.norm, nn.Identity):
        raise _unfit(name, "it has no norm after the last block")


def _unfit(name: str, reason: str) -> ValueError:
    return ValueError(
        f"timm's {name!r} cannot carry EoMT: {reason}. Needed is a VisionTransformer or Eva with "
        "pre-norm blocks (Block or EvaBlock), one rotary table at most, and a final norm."
    )
