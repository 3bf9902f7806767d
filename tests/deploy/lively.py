"""Small models whose label maps have several classes, their config, and pictures with structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.checkpoints.weights_file import save_weights
from mmseg_eomt.config_files import config_path
from mmseg_eomt.header import ModelHeader
from tests.apis.tiny import ARCH, tiny_header

CLASSES = {3: "road", 7: "sky", 9: "tree", 11: "car", 300: "hut"}


def lively_header(family: str = "dinov3", **changes: Any) -> ModelHeader:
    values: dict[str, Any] = {
        "family": family,
        "num_queries": 8,
        "classes": tuple(CLASSES.values()),
        "class_ids": tuple(CLASSES),
        "palette": tuple((40 * index, 200 - 40 * index, 90) for index in range(len(CLASSES))),
    }
    return tiny_header(**{**values, **changes})


def lively_segmentor(header: ModelHeader, *, seed: int | None = None) -> Any:
    """Build an untrained model that tells regions apart: by itself it has one class alone."""
    torch.manual_seed({"dinov2": 3}.get(header.family, 0) if seed is None else seed)
    model: Any = build_segmentor(header).eval()
    with torch.no_grad():
        model.decode_head.query.weight.mul_(100)
        model.decode_head.class_head.weight.mul_(30)
        model.decode_head.mask_head[-1].weight.mul_(30)
        if model.backbone.vit.pos_embed is not None:
            model.backbone.vit.pos_embed.mul_(20)
    return model


def lively_weights(path: Path, family: str = "dinov3", **changes: Any) -> ModelHeader:
    """Write such a model as lean weights."""
    header = lively_header(family, **changes)
    save_weights(path, lively_segmentor(header), header)
    return header


def picture(size: tuple[int, int], *, seed: int = 0) -> Image.Image:
    """Soft blobs of colour, (height, width)."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return blobs.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def lively_config(family: str = "dinov3", *, short_side: int = 32) -> Config:
    """The quickstart's config, changed to what `lively_weights` would have been trained with."""
    cfg = Config.fromfile(config_path("eomt/tiny_quickstart.py"))
    cfg.model.backbone.type = {"dinov3": "DINOv3", "dinov2": "DINOv2"}[family]
    cfg.model.backbone.arch = dict(ARCH)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step["type"] == "ResizeShortSide":
            step["size"] = short_side
    return cfg
