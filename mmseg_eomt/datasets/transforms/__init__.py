"""Pipeline steps: reading, augmentation and the validation rule."""

from __future__ import annotations

from mmseg_eomt.datasets.transforms.albumentations_steps import AlbumentationsSteps
from mmseg_eomt.datasets.transforms.color import ChannelDrop, EoMTColorJitter
from mmseg_eomt.datasets.transforms.crops import RareClassCrop, ScaleJitterCrop
from mmseg_eomt.datasets.transforms.loading import (
    LoadFolderAnnotations,
    LoadFolderImage,
    PackByteInputs,
    ResizeShortSide,
    SeedSample,
)
from mmseg_eomt.datasets.transforms.rotation import RandomQuarterTurn, RandomRotation

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
