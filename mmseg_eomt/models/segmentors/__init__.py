"""Segmentors."""

from __future__ import annotations

from mmseg_eomt.models.segmentors.data_preprocessor import EoMTDataPreProcessor
from mmseg_eomt.models.segmentors.eomt import EoMTSegmentor, EoMTTTAModel

__all__ = ["EoMTDataPreProcessor", "EoMTSegmentor", "EoMTTTAModel"]
