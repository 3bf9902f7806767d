"""Backbones, head, loss and segmentor."""

from __future__ import annotations

from mmseg_eomt import compat
from mmseg_eomt.lazy_names import lazy_names

compat.apply()  # before anything here imports mmseg

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ARCHITECTURES": "architectures",
        "Architecture": "architectures",
        "DINOv2": "backbones",
        "DINOv3": "backbones",
        "EoMTHead": "eomt_head",
        "EoMTSegmentor": "eomt_segmentor",
        "HungarianMatcher": "matcher",
        "MaskClassificationLoss": "mask_loss",
        "TimmViT": "backbones",
        "ViTBackbone": "vit",
        "resolve_architecture": "architectures",
    },
)
