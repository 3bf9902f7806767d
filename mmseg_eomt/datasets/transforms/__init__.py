"""Pipeline steps: reading, augmentation and the validation rule."""

from __future__ import annotations

from mmseg_eomt.datasets.transforms.albumentations_steps import AlbumentationsSteps
from mmseg_eomt.datasets.transforms.channel_drop import ChannelDrop
from mmseg_eomt.datasets.transforms.color_jitter import EoMTColorJitter
from mmseg_eomt.datasets.transforms.loading import LoadFolderAnnotations, LoadFolderImage
from mmseg_eomt.datasets.transforms.packing import PackByteInputs
from mmseg_eomt.datasets.transforms.rare_class_crop import RareClassCrop
from mmseg_eomt.datasets.transforms.resize import ResizeShortSide
from mmseg_eomt.datasets.transforms.rotation import RandomQuarterTurn, RandomRotation
from mmseg_eomt.datasets.transforms.scale_jitter_crop import ScaleJitterCrop
from mmseg_eomt.datasets.transforms.seed import SeedSample

__all__ = [
    "AlbumentationsSteps",
    "ChannelDrop",
    "EoMTColorJitter",
    "LoadFolderAnnotations",
    "LoadFolderImage",
    "PackByteInputs",
    "RandomQuarterTurn",
    "RandomRotation",
    "RareClassCrop",
    "ResizeShortSide",
    "ScaleJitterCrop",
    "SeedSample",
]
