"""A small folder dataset on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = {0: "sky", 1: "ground", 7: {"name": "car", "labels": [7, 9]}}


def write_pair(root: Path, split: str, stem: str, *, size: tuple[int, int] = (12, 8)) -> None:
    """Writes one image (JPEG) and its mask; ``size`` is (width, height)."""
    rng = np.random.default_rng(len(stem))
    width, height = size
    for folder in ("images", "masks"):
        (root / split / folder / stem).parent.mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 1, 7, 9, 255], np.uint8), (height, width))
    Image.fromarray(image).save(root / split / "images" / f"{stem}.jpg")
    Image.fromarray(mask).save(root / split / "masks" / f"{stem}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with three pairs (one nested) and val/ with one."""
    for stem in ("a", "b", "deep/c"):
        write_pair(tmp_path, "train", stem)
    write_pair(tmp_path, "val", "v")
    return tmp_path


@pytest.fixture
def describe(folder: Path) -> Callable[..., dict[str, Any]]:
    """The description of ``folder`` as a dict, with changes; None removes a key."""

    def make(**changes: Any) -> dict[str, Any]:
        data: dict[str, Any] = {
            split: {
                "images": str(folder / split / "images"),
                "masks": str(folder / split / "masks"),
            }
            for split in ("train", "val")
        }
        data.update(classes=dict(CLASSES))
        data.update(changes)
        return {key: value for key, value in data.items() if value is not None}

    return make
