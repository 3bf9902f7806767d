"""What to look at while pretraining runs. Importing this package registers the hooks."""

from __future__ import annotations

from dinov2_pretraining.monitors.labelled_accuracy_hook import LabelledAccuracyHook
from dinov2_pretraining.monitors.patch_picture_hook import PatchPictureHook
from dinov2_pretraining.monitors.training_data_hook import TrainingDataHook

__all__ = ["LabelledAccuracyHook", "PatchPictureHook", "TrainingDataHook"]
