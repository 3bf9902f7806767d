"""Mask classification loss, matching, and the sampling of label maps at points."""

from __future__ import annotations

from mmseg_eomt.models.losses.mask_classification_loss import MaskClassificationLoss
from mmseg_eomt.models.losses.matcher import HungarianMatcher

__all__ = ["HungarianMatcher", "MaskClassificationLoss"]
