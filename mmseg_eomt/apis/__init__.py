"""The few calls a user makes: train, load a model, predict."""

from __future__ import annotations

from mmseg_eomt import compat
from mmseg_eomt.lazy_names import lazy_names

compat.apply()  # before anything here imports mmseg

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "MODEL_NAMES": "options",
        "ResolvedRun": "resolve",
        "SegmentationModel": "inference",
        "export_onnx": "export",
        "load_model": "inference",
        "load_model_from_checkpoint": "inference",
        "optimize_for_inference": "inference",
        "pretrain": "pretraining",
        "resolve_config": "resolve",
        "train_semantic_segmentation": "train",
    },
)
