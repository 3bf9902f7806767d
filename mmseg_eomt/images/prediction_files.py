"""Predictions of image files as files: class-id PNGs and overlays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmseg_eomt.images.painting import check_opacity
from mmseg_eomt.images.reading import IMAGE_SUFFIXES

IMAGES = 4
"""Images whose windows share forward passes; each has one or two windows as a rule."""


@dataclass(frozen=True)
class PredictionFiles:
    """Which images are predicted, and where their results go."""

    paths: list[Path]
    targets: list[tuple[Path, Path]]  # mask and overlay of each
    opacity: float


class Predictor(Protocol):
    """A model that predicts files: `SegmentationModel` of PyTorch, `Session` of exported ones."""

    @property
    def classes(self) -> Mapping[int, str]:
        """Class names by the ids that predictions carry."""

    def predict_batch(self, images: Sequence[Any]) -> Sequence[Any]:
        """Class ids `[H, W]` of each image, as tensors on the CPU or arrays."""

    def overlay(self, image: Any, mask: Any, *, opacity: float) -> Image.Image:
        """An image with class ids painted over it."""


def plan_files(images: str | Path, out: str | Path, *, opacity: float) -> PredictionFiles:
    """Check what `write_predictions` is asked for, before a model is loaded.

    Args:
        images: An image, or a folder that is searched with its subfolders.
        out: Folder of the results.
        opacity: Of the class colours in overlays, 0 to 1.

    Raises:
        FileNotFoundError: If there are no such images.
        ValueError: If results would overwrite inputs or each other, or `opacity` is out of range.
    """
    check_opacity(opacity)
    images, out = Path(images), Path(out)
    paths = find_images(images)
    root = images if images.is_dir() else images.parent
    return PredictionFiles(paths, _targets(paths, root, out), opacity)


def write_predictions(model: Predictor, files: PredictionFiles) -> int:
    """Predict images and write `masks/NAME.png` and `overlays/NAME.png` below a folder.

    A mask holds class ids, in 8 bits, or 16 where an id is above 255; subfolders are kept.

    Args:
        model: Predicts them.
        files: From `plan_files`.

    Returns:
        Number of images.

    Raises:
        ValueError: If a file is unreadable.
    """
    paths, targets = files.paths, files.targets
    largest = max(model.classes)
    console = Console(stderr=True)
    for first in track(
        range(0, len(paths), IMAGES),
        description="predict",
        console=console,
        disable=not console.is_terminal,
    ):
        part = slice(first, first + IMAGES)
        masks = model.predict_batch(paths[part])
        for path, mask, pair in zip(paths[part], masks, targets[part], strict=True):
            mask_path, overlay_path = pair
            for target in pair:
                target.parent.mkdir(parents=True, exist_ok=True)
            mask_image(mask, largest=largest).save(mask_path)
            model.overlay(path, mask, opacity=files.opacity).save(overlay_path)
    return len(paths)


def find_images(images: Path) -> list[Path]:
    """Return an image, or the images below a folder in order.

    Raises:
        FileNotFoundError: If there are none.
    """
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such image or folder.")
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"{images}: no images in this folder; endings searched: {', '.join(IMAGE_SUFFIXES)}."
        )
    return found


def mask_image(mask: Any, *, largest: int) -> Image.Image:
    """Class ids `[H, W]` as a grey PNG image of 8 bits, or of 16 if `largest` is above 255."""
    dtype = np.uint8 if largest <= 255 else np.uint16
    return Image.fromarray(np.asarray(mask).astype(dtype))


def _targets(paths: list[Path], root: Path, out: Path) -> list[tuple[Path, Path]]:
    """Return mask and overlay paths; refuses to write over inputs or twice to one file."""
    inputs = {os.path.realpath(path) for path in paths}
    owner: dict[str, Path] = {}
    targets = []
    for path in paths:
        relative = path.relative_to(root).with_suffix(".png")
        pair = (out / "masks" / relative, out / "overlays" / relative)
        for target in pair:
            real = os.path.realpath(target)
            if real in inputs:
                raise ValueError(
                    f"{target}: the result would overwrite an input image; take another --out."
                )
            if real in owner:
                raise ValueError(
                    f"{path} and {owner[real]} would both be written to {target}: rename one, as "
                    "results are named by the stem of the image."
                )
            owner[real] = path
        targets.append(pair)
    return targets
