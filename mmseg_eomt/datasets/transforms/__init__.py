"""Pipeline steps: reading, augmentation and the validation rule."""

from __future__ import annotations

from mmseg_eomt.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AlbumentationsSteps": "albumentations_steps",
        "ChannelDrop": "color",
        "EoMTColorJitter": "color",
        "LoadFolderAnnotations": "loading",
        "LoadFolderImage": "loading",
        "PackByteInputs": "loading",
        "RandomQuarterTurn": "rotation",
        "RandomRotation": "rotation",
        "RareClassCrop": "crops",
        "ResizeShortSide": "loading",
        "ScaleJitterCrop": "crops",
        "SeedSample": "loading",
    },
)
