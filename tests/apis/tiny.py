"""A tiny model, its header and a tiny folder dataset, for tests of the calls a user makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmseg_eomt.header import ModelHeader

ARCH = {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
CLASSES = {3: "road", 7: "sky", 300: "tree"}

# MMEngine formats the whole config for each checkpoint and backend, a second or more each time.
FEW_FILES = {
    "logger_args": {"tensorboard": None},
    "save_checkpoint_args": {"interval": 100, "save_best": None},
}


def tiny_header(**changes: Any) -> ModelHeader:
    values: dict[str, Any] = {
        "family": "dinov3",
        "architecture": dict(ARCH),
        "patch_size": 8,
        "image_size": (32, 32),
        "in_channels": 3,
        "num_queries": 4,
        "num_joint_blocks": 1,
        "num_upscale_blocks": 1,
        "classes": tuple(CLASSES.values()),
        "class_ids": tuple(CLASSES),
        "palette": ((0, 0, 0), (10, 20, 30), (255, 255, 255)),
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
        "test_size": (32, 32),
    }
    return ModelHeader(**{**values, **changes})


def make_data(root: Path, *, images: int = 2) -> dict[str, Any]:
    """Write images and masks and return their description."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {"classes": dict(CLASSES)}
    for split in ("train", "val"):
        folders = {name: root / split / name for name in ("images", "masks")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        for index in range(images):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            labels = rng.choice(np.array(list(CLASSES), np.uint16), (30, 40))
            Image.fromarray(pixels).save(folders["images"] / f"{index}.png")
            Image.fromarray(labels).save(folders["masks"] / f"{index}.png")
        data[split] = {name: str(folder) for name, folder in folders.items()}
    return data


def tiny_call(data: Any, **changes: Any) -> dict[str, Any]:
    """Arguments of `train_semantic_segmentation` for a run of three steps."""
    call: dict[str, Any] = {
        "data": data,
        "model": "dinov3/vits16-eomt",
        "steps": 3,
        "batch_size": 2,
        "num_workers": 0,
        "model_args": {
            "arch": dict(ARCH),
            "backbone_weights": None,
            "num_queries": 4,
            "num_joint_blocks": 1,
            "num_points": 32,
        },
        "transform_args": {"image_size": 32},
        "save_checkpoint_args": {"interval": 2},
    }
    return {**call, **changes}
