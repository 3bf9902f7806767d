"""EoMT semantic segmentation for MMSegmentation. Importing it registers every component."""

from __future__ import annotations

from mmseg_eomt import compat

# Before anything imports mmseg.
compat.apply()

from mmseg_eomt import datasets, engine, evaluation, models  # noqa: E402
from mmseg_eomt.apis import (  # noqa: E402
    MODEL_NAMES,
    SegmentationModel,
    load_model,
    load_model_from_checkpoint,
    optimize_for_inference,
    train_semantic_segmentation,
)
from mmseg_eomt.checkpoints.convert import convert_checkpoint  # noqa: E402
from mmseg_eomt.config_files import config_path  # noqa: E402
from mmseg_eomt.version import __version__  # noqa: E402

__all__ = [
    "MODEL_NAMES",
    "SegmentationModel",
    "__version__",
    "config_path",
    "convert_checkpoint",
    "datasets",
    "engine",
    "evaluation",
    "load_model",
    "load_model_from_checkpoint",
    "models",
    "optimize_for_inference",
    "train_semantic_segmentation",
]
