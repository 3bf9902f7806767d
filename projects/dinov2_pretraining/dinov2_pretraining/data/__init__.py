"""Unlabelled images, their views, masks and batches."""

from __future__ import annotations

from dinov2_pretraining.data import views
from dinov2_pretraining.data.collate import collate_views
from dinov2_pretraining.data.unlabelled_images import UnlabelledImages

__all__ = ["UnlabelledImages", "collate_views", "views"]
