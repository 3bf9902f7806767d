"""Meta's layout of DINOv2 and DINOv3 (facebookresearch/dinov2, facebookresearch/dinov3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.checkpoints.timm import filter_by_timm

# Of pretraining only, or made anew from the sizes. EUPE's files have projectors beside.
_UNUSED = ("mask_token", "rope_embed.", "local_cls_norm.", "projectors.")


def is_meta_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are Meta's: DINOv3's storage tokens, or DINOv2's mask token."""
    if not any(name.startswith("blocks.") for name in weights):
        return False
    return "storage_tokens" in weights or ("mask_token" in weights and "pos_embed" in weights)


def convert_meta(weights: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Turns Meta's weights into those of ``vit``, by timm's own conversion.

    Kernel and position table are resampled to the patch size and grid of ``vit``. What only
    pretraining needs (mask token, DINOv3's ``local_cls_norm`` and ``rope_embed``) is left out.

    Args:
        weights (dict[str, Tensor]): As :func:`is_meta_layout` accepts.
        vit (VisionTransformer | Eva): The module to fit.

    Returns:
        dict[str, Tensor]: timm's names.
    """
    return filter_by_timm(weights, vit)


def rename_meta(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives Meta's weights timm's names, without a model to fit and without resampling.

    DINOv3's biases of q, k and v are multiplied by their mask; the key's must be zero then.

    Args:
        weights (Mapping[str, Tensor]): As :func:`is_meta_layout` accepts.

    Returns:
        dict[str, Tensor]: timm's names; unknown ones are kept.

    Raises:
        ValueError: If a key has a bias, which DINOv3 does not have.
    """
    rotary = "storage_tokens" in weights
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_UNUSED) or name.endswith(".bias_mask"):
            continue
        if rotary and name.endswith(".attn.qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            q, k, v = _masked(value, weights.get(f"{name}_mask")).chunk(3)
            if k.nan_to_num().any():
                raise ValueError(
                    f"{name}: the key has a bias other than zero, which DINOv3's layers do not "
                    "have: the file is of another model."
                )
            renamed[f"{stem}q_bias"], renamed[f"{stem}v_bias"] = q, v
        else:
            renamed[_timm_name(name, rotary=rotary)] = value
    if not rotary and "reg_token" in renamed:
        # timm folds cls' own position into the token when there are registers.
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    """``bias * mask``, where a masked NaN is zero."""
    if mask is None or mask.shape != bias.shape:
        return bias
    if mask.isnan().any():  # as a model has it before weights are loaded: only the key is masked
        q, k, v = bias.chunk(3)
        return torch.cat((q, torch.zeros_like(k), v))
    return torch.where(mask == 0, torch.zeros_like(bias), bias * mask)


def _timm_name(name: str, *, rotary: bool) -> str:
    if name in ("storage_tokens", "register_tokens"):
        return "reg_token"
    if not name.startswith("blocks."):
        return name
    changes = (
        (
            (".ls1.gamma", ".gamma_1"),
            (".ls2.gamma", ".gamma_2"),
            (".mlp.w1.", ".mlp.fc1_g."),
            (".mlp.w2.", ".mlp.fc1_x."),
            (".mlp.w3.", ".mlp.fc2."),
        )
        if rotary
        else ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
    )
    for old, new in changes:
        name = name.replace(old, new)
    return name
