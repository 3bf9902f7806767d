"""Predictions of image files by a checkpoint, as files: class-id PNGs and overlays."""

from __future__ import annotations

from pathlib import Path

from mmseg_eomt.apis.inference import load_model
from mmseg_eomt.apis.optimize import optimize_for_inference
from mmseg_eomt.images.prediction_files import plan_files, write_predictions


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

    Writes `out/masks/NAME.png` and `out/overlays/NAME.png`, see `write_predictions`.

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
    files = plan_files(images, out, opacity=opacity)
    model = load_model(checkpoint, device=device)
    if precision != "fp32" or compile is not None:
        dtype = None if precision == "fp32" else precision
        optimize_for_inference(model, dtype=dtype, compile=compile)
    return write_predictions(model, files)
