"""Backbones. Importing this package registers them."""

from __future__ import annotations

from mmseg_eomt.models.backbones.architectures import (
    ARCHITECTURES,
    Architecture,
    resolve_architecture,
)
from mmseg_eomt.models.backbones.dinov2 import DINOv2
from mmseg_eomt.models.backbones.dinov3 import DINOv3
from mmseg_eomt.models.backbones.state import EncoderState
from mmseg_eomt.models.backbones.timm_vit import TimmViT
from mmseg_eomt.models.backbones.vit import ViTBackbone

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DINOv2",
    "DINOv3",
    "EncoderState",
    "TimmViT",
    "ViTBackbone",
    "resolve_architecture",
]
