"""Configs with the number of classes set, and their models on the meta device."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from tests.configs.published import ROOT

# As many as ADE20K, so that both configs of an architecture share one model here.
FOLDER_CLASSES = 150


@functools.cache
def read(name: str) -> Config:
    return Config.fromfile(ROOT / "eomt" / f"{name}.py")


def classes_of(cfg: Config) -> int:
    """As many classes as the dataset has; those of a folder follow from its description."""
    dataset_type = cfg.train_dataloader.dataset.type
    if dataset_type == "FolderSegDataset":
        return FOLDER_CLASSES
    return len(DATASETS.get(dataset_type).METAINFO["classes"])


_models: dict[str, Any] = {}


def meta_model(name: str) -> Any:
    cfg = copy.deepcopy(read(name))
    cfg.model.decode_head.num_classes = classes_of(cfg)
    key = repr(cfg.model)
    if key not in _models:
        _models[key] = _build_on_meta(cfg)
    return _models[key]


def _build_on_meta(cfg: Config) -> Any:
    with torch.device("meta"):
        return MODELS.build(cfg.model)


@pytest.fixture(autouse=True)
def mmseg_scope() -> None:
    """Types are looked up as the runner does."""
    init_default_scope("mmseg")


@pytest.fixture
def cfg(name: str) -> Config:
    """The config called ``name``."""
    return copy.deepcopy(read(name))


@pytest.fixture
def model(name: str) -> Any:
    """The model of the config called ``name``, without memory."""
    return meta_model(name)
