"""Predictions of image files as files: class-id PNGs and overlays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmseg_eomt.apis.inference import load_model
from mmseg_eomt.apis.optimize import optimize_for_inference
from mmseg_eomt.images.reading import IMAGE_SUFFIXES

IMAGES = 4
"""Images whose windows share forward passes; each has one or two windows as a rule."""


def predict_files(
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    opacity: float = 0.5,
    precision: str = "fp32",
    compile: str | None = None,
) -> int:
    """Predict an image, or all images of a folder and its subfolders.

    Writes `out/masks/NAME.png` (class ids, 8 bits, or 16 where an id is above 255) and
    `out/overlays/NAME.png`; subfolders are kept.

    Args:
        checkpoint: Lean weights or a training checkpoint.
        images: An image or a folder.
        out: Folder of the results.
        device: Where to run; None takes the GPU if there is one.
        opacity: Of the class colours in overlays, 0 to 1.
        precision: 'fp32', 'bf16' or 'fp16', see `optimize_for_inference`.
        compile: None, 'default' or 'max-autotune', likewise.

    Returns:
        Number of images.

    Raises:
        FileNotFoundError: If there are no such images.
        ValueError: If results would overwrite inputs or each other, or a file is unreadable.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity is {opacity}: it must lie between 0 and 1.")
    images, out = Path(images), Path(out)
    paths = find_images(images)
    root = images if images.is_dir() else images.parent
    targets = _targets(paths, root, out)
    model = load_model(checkpoint, device=device)
    if precision != "fp32" or compile is not None:
        dtype = None if precision == "fp32" else precision
        optimize_for_inference(model, dtype=dtype, compile=compile)
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
            mask_image(mask, largest=max(model.header.class_ids)).save(mask_path)
            model.overlay(path, mask, opacity=opacity).save(overlay_path)
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


def mask_image(mask: Tensor, *, largest: int) -> Image.Image:
    """Return class ids as a grey PNG image of 8 bits, or of 16 if `largest` is above 255."""
    dtype = np.uint8 if largest <= 255 else np.uint16
    return Image.fromarray(mask.numpy().astype(dtype))


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
