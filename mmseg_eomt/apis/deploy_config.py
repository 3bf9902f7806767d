"""A config that holds all that MMDeploy needs of a model, and no more."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from mmseg_eomt.apis.arguments import set_short_side
from mmseg_eomt.apis.resolve import LOADERS, set_channels, set_data
from mmseg_eomt.checkpoints.describe import test_size_of
from mmseg_eomt.deploy.mmdeploy.model_config import model_of_checkpoint
from mmseg_eomt.header import ModelHeader

KEPT = (
    *("custom_imports", "default_scope", "env_cfg", "log_level"),
    *("test_pipeline", "test_dataloader", "test_cfg", "test_evaluator"),
)


def deployable_config(cfg: Config, checkpoint: str | Path, *, data: Any = None) -> Config:
    """Complete a config with what a checkpoint says, and leave training out.

    Classes, colours, channels and sizes are those of the checkpoint.

    Args:
        cfg: The config that was trained with; it is not changed.
        checkpoint: Lean weights or a training checkpoint.
        data: Description of one's own folders, for a later test; None keeps those of the config.

    Returns:
        A config with `model`, `data_preprocessor`, `test_pipeline`, `dataset_meta` and the test
        set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If something contradicts something else.
    """
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    if "test_dataloader" not in cfg or not cfg.test_dataloader:
        raise ValueError(
            f"{cfg.filename or 'the config'} has no test_dataloader, whose pipeline says how "
            "images are prepared: take the config that the model was trained with."
        )
    for name in LOADERS.values():
        if name != "test_dataloader":
            cfg.pop(name, None)
    found = model_of_checkpoint(cfg.model, checkpoint)
    cfg.model = found.model
    set_channels(cfg)
    if data is not None:
        set_data(cfg, data)
    if found.header is not None:
        _set_test_size(cfg, found.header, checkpoint)
    cfg.test_pipeline = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    complete = Config({name: cfg[name] for name in KEPT if name in cfg}, filename=cfg.filename)
    complete.model = cfg.model
    # Where MMDeploy looks for the normalisation.
    complete.data_preprocessor = copy.deepcopy(cfg.model.data_preprocessor)
    if found.dataset_meta:
        complete.dataset_meta = found.dataset_meta
    return complete


def _set_test_size(cfg: Config, header: ModelHeader, checkpoint: str | Path) -> None:
    """Give the test pipeline the size that the weights were validated at."""
    own, given = header.test_size, test_size_of(cfg)
    if own == given:
        return
    if own is None or given is None or own[0] != own[1] or given[0] != given[1]:
        raise ValueError(
            f"{checkpoint}: validated with images resized to {own} (height, width; None keeps "
            f"their size), but the test pipeline of the config resizes to {given}: change it to "
            "that."
        )
    set_short_side(cfg, own[0])
    print_log(
        f"{checkpoint}: validated at a short side of {own[0]}, not at the {given[0]} of the "
        f"config: the deployed model takes {own[0]}.",
        logger="current",
        level=logging.WARNING,
    )
