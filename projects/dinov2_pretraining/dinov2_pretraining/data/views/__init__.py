"""From an image to its views."""

from __future__ import annotations

from dinov2_pretraining.data.views.multi_crop import MultiCropViews

__all__ = ["MultiCropViews"]
