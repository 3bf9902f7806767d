"""Meta's layout of DINOv2 and DINOv3 (facebookresearch/dinov2, facebookresearch/dinov3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmseg_eomt.checkpoints.timm import filter_by_timm


def is_meta_layout(weights: dict[str, Tensor]) -> bool:
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
