"""Pipeline steps: reading, augmentation and the validation rule."""

from __future__ import annotations

from mmseg_eomt.datasets.transforms.color_jitter import EoMTColorJitter
from mmseg_eomt.datasets.transforms.loading import LoadFolderAnnotations, LoadFolderImage
from mmseg_eomt.datasets.transforms.packing import PackByteInputs
from mmseg_eomt.datasets.transforms.resize import ResizeShortSide
from mmseg_eomt.datasets.transforms.scale_jitter_crop import ScaleJitterCrop
from mmseg_eomt.datasets.transforms.seed import SeedSample

__all__ = [
    "EoMTColorJitter",
    "LoadFolderAnnotations",
    "LoadFolderImage",
    "PackByteInputs",
    "ResizeShortSide",
    "ScaleJitterCrop",
    "SeedSample",
]
