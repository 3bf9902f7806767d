"""Student, teacher and what they are made of. Importing this package registers them."""

from __future__ import annotations

from dinov2_pretraining.models.masked_vit import MaskedViT
from dinov2_pretraining.models.network import Network
from dinov2_pretraining.models.preprocessor import ViewPreprocessor
from dinov2_pretraining.models.projection_head import ProjectionHead
from dinov2_pretraining.models.student_teacher import DINOv2Pretraining

__all__ = ["DINOv2Pretraining", "MaskedViT", "Network", "ProjectionHead", "ViewPreprocessor"]
