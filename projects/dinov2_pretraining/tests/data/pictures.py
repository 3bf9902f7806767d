"""Small pictures in folders."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def picture(number: int, *, width: int = 60, height: int = 44) -> np.ndarray:
    """Smooth blotches, ``uint8 [height, width, 3]`` RGB, others for each number."""
    blotches = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC))


def write_pictures(folder: Path, count: int, *, first: int = 0, suffix: str = ".png") -> list[Path]:
    """``count`` pictures, named by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}{suffix}" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        Image.fromarray(picture(number)).save(path)
    return paths
