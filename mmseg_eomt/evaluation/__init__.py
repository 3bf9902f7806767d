"""Metrics."""

from __future__ import annotations

from mmseg_eomt.evaluation.metrics import SegmentationMetric

__all__ = ["SegmentationMetric"]
