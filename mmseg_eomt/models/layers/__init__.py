"""Building blocks of EoMT: joint attention, upscaling, random numbers of a step."""

from __future__ import annotations

from mmseg_eomt.models.layers.joint_block import joint_attention, run_joint_block
from mmseg_eomt.models.layers.mask_maps import MaskMaps
from mmseg_eomt.models.layers.recompute import recomputed
from mmseg_eomt.models.layers.step_random import StepRandom
from mmseg_eomt.models.layers.upscale import (
    ACTIVATIONS,
    UpscaleBlock,
    mask_logits,
    reduce_to_grid,
    upscaled,
)

__all__ = [
    "ACTIVATIONS",
    "MaskMaps",
    "StepRandom",
    "UpscaleBlock",
    "joint_attention",
    "mask_logits",
    "recomputed",
    "reduce_to_grid",
    "run_joint_block",
    "upscaled",
]
