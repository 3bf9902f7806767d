"""Metrics."""

from __future__ import annotations

from mmseg_eomt.evaluation.metrics.segmentation_metric import SegmentationMetric

__all__ = ["SegmentationMetric"]
