"""What happens around training steps and validations."""

from __future__ import annotations

from mmseg_eomt.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ExportWeightsHook": "checkpoint",
        "MaskAnnealingHook": "mask_annealing",
        "PredictionPictureHook": "prediction_pictures",
        "ProfileHook": "profile",
        "ProgressHook": "progress",
        "SafeCheckpointHook": "checkpoint",
        "StartFromHook": "start_from",
        "TrainingMonitorHook": "training_log",
        "WeightHashHook": "weight_hash",
        "default_windows": "mask_annealing",
        "mask_probability": "mask_annealing",
        "role_rates": "training_log",
    },
)
