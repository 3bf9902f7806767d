"""Model names of the Python call, and the configs they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mmseg_eomt.config_files import config_path
from mmseg_eomt.models.architectures import ARCHITECTURES

SUFFIX = "-eomt"
MODEL_NAMES = tuple(f"{name}{SUFFIX}" for name in ARCHITECTURES)


def load_model_config(model: str) -> Config:
    """Return the config of a model name: `eomt/{family}_{arch}_folder.py`.

    Args:
        model: One of `MODEL_NAMES`, such as 'dinov3/vits16-eomt'. '-noreg' ones differ from the
            config by the backbone's `arch` alone.

    Raises:
        ValueError: If there is no such model; the message lists all.
    """
    if model not in MODEL_NAMES:
        raise ValueError(
            f"model is {model!r}. {nearest(model, MODEL_NAMES)}Allowed: {', '.join(MODEL_NAMES)}."
        )
    family, arch = model.removesuffix(SUFFIX).split("/")
    cfg: Any = Config.fromfile(
        config_path(f"eomt/{family}_{arch.removesuffix('-noreg')}_folder.py")
    )
    cfg.model.backbone.arch = arch
    return cfg


def nearest(name: str, known: Sequence[str]) -> str:
    """Return 'Did you mean ...? ' or nothing."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
