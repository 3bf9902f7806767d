"""EoMT semantic segmentation for MMSegmentation. Importing it registers every component.

It does so at once where a package of OpenMMLab is imported already, as in every config and tool,
and otherwise as soon as mmseg is imported. Until then neither PyTorch nor OpenMMLab is imported:
`mmseg_eomt.deploy` runs where they are not installed. A component itself is imported when mmseg's
registry is asked for one of its kind.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mmseg_eomt.lazy_names import lazy_names
from mmseg_eomt.registration import AfterImport, register
from mmseg_eomt.version import __version__

if TYPE_CHECKING:
    from mmseg_eomt.apis.export import export_onnx
    from mmseg_eomt.apis.inference import (
        SegmentationModel,
        load_model,
        load_model_from_checkpoint,
        optimize_for_inference,
    )
    from mmseg_eomt.apis.options import MODEL_NAMES
    from mmseg_eomt.apis.pretraining import pretrain
    from mmseg_eomt.apis.train import train_semantic_segmentation
    from mmseg_eomt.checkpoints.convert import convert_checkpoint
    from mmseg_eomt.config_files import config_path

__all__ = [
    "MODEL_NAMES",
    "SegmentationModel",
    "__version__",
    "config_path",
    "convert_checkpoint",
    "export_onnx",
    "load_model",
    "load_model_from_checkpoint",
    "optimize_for_inference",
    "pretrain",
    "train_semantic_segmentation",
]

__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "MODEL_NAMES": "apis.options",
        "SegmentationModel": "apis.inference",
        "config_path": "config_files",
        "convert_checkpoint": "checkpoints.convert",
        "export_onnx": "apis.export",
        "load_model": "apis.inference",
        "load_model_from_checkpoint": "apis.inference",
        "optimize_for_inference": "apis.inference",
        "pretrain": "apis.pretraining",
        "train_semantic_segmentation": "apis.train",
    },
)

if any(package in sys.modules for package in ("mmengine", "mmcv", "mmseg")):
    register()
else:
    # All components are in registries of mmseg, so nobody can ask for one before.
    AfterImport("mmseg", register).put_on()
