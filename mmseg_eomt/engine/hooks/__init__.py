"""What happens around training steps and validations."""

from __future__ import annotations

from mmseg_eomt.engine.hooks.checkpoint import ExportWeightsHook, SafeCheckpointHook
from mmseg_eomt.engine.hooks.mask_annealing import (
    MaskAnnealingHook,
    default_windows,
    mask_probability,
)
from mmseg_eomt.engine.hooks.prediction_pictures import PredictionPictureHook
from mmseg_eomt.engine.hooks.profile import ProfileHook
from mmseg_eomt.engine.hooks.progress import ProgressHook
from mmseg_eomt.engine.hooks.start_from import StartFromHook
from mmseg_eomt.engine.hooks.training_log import TrainingMonitorHook, role_rates
from mmseg_eomt.engine.hooks.weight_hash import WeightHashHook

__all__ = [
    "ExportWeightsHook",
    "MaskAnnealingHook",
    "PredictionPictureHook",
    "ProfileHook",
    "ProgressHook",
    "SafeCheckpointHook",
    "StartFromHook",
    "TrainingMonitorHook",
    "WeightHashHook",
    "default_windows",
    "mask_probability",
    "role_rates",
]
