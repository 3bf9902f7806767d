"""The conversion tool and what its tests write and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.commands import convert_dataset
from mmseg_eomt.datasets import FolderSegDataset

Run = Callable[..., int]


def load_tool() -> Run:
    """The tool's main, with any arguments."""
    return lambda *arguments: int(convert_dataset.main([str(argument) for argument in arguments]))


def image(path: Path, width: int = 30, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def png(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask_of(out: Path, stem: str, split: str = "train") -> NDArray[np.uint8]:
    with Image.open(out / split / "masks" / f"{stem}.png") as file:
        assert file.mode == "L"
        return np.asarray(file)


def state(folder: Path) -> dict[str, str]:
    """Content of all files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def reads(out: Path, split: str = "train") -> FolderSegDataset:
    """The result as training reads it, every mask checked."""
    return FolderSegDataset(str(out / "data.yaml"), split=split, num_checked_masks=1000)
