"""Any vision transformer of timm as EoMT's encoder."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
from mmseg.registry import MODELS
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mmseg_eomt.models.backbones.architectures import default_num_joint_blocks
from mmseg_eomt.models.backbones.vit import ViTBackbone, padded_size


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
