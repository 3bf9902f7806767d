"""Metrics."""

from __future__ import annotations

from mmseg_eomt import compat
from mmseg_eomt.lazy_names import lazy_names

compat.apply()  # before anything here imports mmseg

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "SegmentationMetric": "segmentation_metric",
    },
)
