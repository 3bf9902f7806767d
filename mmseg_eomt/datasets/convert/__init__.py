"""Annotations of other tools, and well-known datasets, to folder datasets."""

from __future__ import annotations

from mmseg_eomt.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "KNOWN": "known",
        "Report": "output",
        "convert_coco": "coco",
        "convert_colors": "color_masks",
        "convert_cvat": "color_masks",
        "convert_label_studio": "label_studio",
        "convert_labelme": "labelme",
        "describe_known": "known",
    },
)
