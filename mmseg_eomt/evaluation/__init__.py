"""Metrics."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.evaluation.segmentation_metric import SegmentationMetric

__all__ = ["SegmentationMetric"]
