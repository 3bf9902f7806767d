"""The few calls a user makes: train, load a model, predict."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.apis.export import export_onnx
from mmseg_eomt.apis.inference import (
    SegmentationModel,
    load_model,
    load_model_from_checkpoint,
    optimize_for_inference,
)
from mmseg_eomt.apis.options import MODEL_NAMES
from mmseg_eomt.apis.pretraining import pretrain
from mmseg_eomt.apis.resolve import ResolvedRun, resolve_config
from mmseg_eomt.apis.train import train_semantic_segmentation
from mmseg_eomt.engine.hooks.start_from import StartFromHook, start_from

__all__ = [
    "MODEL_NAMES",
    "ResolvedRun",
    "SegmentationModel",
    "StartFromHook",
    "export_onnx",
    "load_model",
    "load_model_from_checkpoint",
    "optimize_for_inference",
    "pretrain",
    "resolve_config",
    "start_from",
    "train_semantic_segmentation",
]
