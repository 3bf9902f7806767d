"""Backbones, head, loss and segmentor. Importing this package registers them."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.models.architectures import ARCHITECTURES, Architecture, resolve_architecture
from mmseg_eomt.models.backbones import DINOv2, DINOv3, TimmViT
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.matcher import HungarianMatcher
from mmseg_eomt.models.vit import ViTBackbone

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DINOv2",
    "DINOv3",
    "EoMTHead",
    "EoMTSegmentor",
    "HungarianMatcher",
    "MaskClassificationLoss",
    "TimmViT",
    "ViTBackbone",
    "resolve_architecture",
]
