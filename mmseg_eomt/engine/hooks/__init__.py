"""What happens around training steps and validations."""

from __future__ import annotations

from mmseg_eomt.engine.hooks.export_weights_hook import ExportWeightsHook
from mmseg_eomt.engine.hooks.mask_annealing_hook import (
    MaskAnnealingHook,
    default_windows,
    mask_probability,
)
from mmseg_eomt.engine.hooks.prediction_picture_hook import PredictionPictureHook
from mmseg_eomt.engine.hooks.profile_hook import ProfileHook
from mmseg_eomt.engine.hooks.progress_hook import ProgressHook
from mmseg_eomt.engine.hooks.safe_checkpoint_hook import SafeCheckpointHook
from mmseg_eomt.engine.hooks.training_monitor_hook import TrainingMonitorHook, role_rates
from mmseg_eomt.engine.hooks.weight_hash_hook import WeightHashHook

__all__ = [
    "ExportWeightsHook",
    "MaskAnnealingHook",
    "PredictionPictureHook",
    "ProfileHook",
    "ProgressHook",
    "SafeCheckpointHook",
    "TrainingMonitorHook",
    "WeightHashHook",
    "default_windows",
    "mask_probability",
    "role_rates",
]
