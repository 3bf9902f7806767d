"""EoMT semantic segmentation for MMSegmentation. Importing it registers every component.

It does so at once where a package of OpenMMLab is imported already, as in every config and tool,
and otherwise as soon as mmseg is imported, or anything here that needs PyTorch is used. Until then
neither PyTorch nor OpenMMLab is imported: `mmseg_eomt.deploy` runs where they are not installed.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from mmseg_eomt.import_hook import AfterImport
from mmseg_eomt.version import __version__

if TYPE_CHECKING:
    from mmseg_eomt import datasets, engine, evaluation, models
    from mmseg_eomt.apis import (
        MODEL_NAMES,
        SegmentationModel,
        export_onnx,
        load_model,
        load_model_from_checkpoint,
        optimize_for_inference,
        pretrain,
        train_semantic_segmentation,
    )
    from mmseg_eomt.checkpoints.convert import convert_checkpoint
    from mmseg_eomt.config_files import config_path

__all__ = [
    "MODEL_NAMES",
    "SegmentationModel",
    "__version__",
    "config_path",
    "convert_checkpoint",
    "datasets",
    "engine",
    "evaluation",
    "export_onnx",
    "load_model",
    "load_model_from_checkpoint",
    "models",
    "optimize_for_inference",
    "pretrain",
    "train_semantic_segmentation",
]

# Modules that are attributes as soon as they are asked for, and where the other names come from.
_MODULES = (
    *("apis", "checkpoints", "compat", "config_files", "datasets"),
    *("deploy", "engine", "evaluation", "models"),
)
_HOMES = {"config_path": "config_files", "convert_checkpoint": "checkpoints.convert"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'apis')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _register() -> None:
    importlib.import_module(f"{__name__}.registration")


if any(package in sys.modules for package in ("mmengine", "mmcv", "mmseg")):
    _register()
else:
    # All components are in registries of mmseg, so nobody can ask for one before.
    AfterImport("mmseg", _register).put_on()
