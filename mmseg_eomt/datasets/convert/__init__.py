"""Annotations of other tools, and well-known datasets, to folder datasets."""

from __future__ import annotations

from mmseg_eomt.datasets.convert.coco import convert_coco
from mmseg_eomt.datasets.convert.color_masks import convert_colors, convert_cvat
from mmseg_eomt.datasets.convert.known import KNOWN, describe_known
from mmseg_eomt.datasets.convert.label_studio import convert_label_studio
from mmseg_eomt.datasets.convert.labelme import convert_labelme
from mmseg_eomt.datasets.convert.output import Report

__all__ = [
    "KNOWN",
    "Report",
    "convert_coco",
    "convert_colors",
    "convert_cvat",
    "convert_label_studio",
    "convert_labelme",
    "describe_known",
]
