"""How far the labels of two runners may differ. NumPy only.

Shape legend: B images, H/W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.pictures import graph_input, made_pictures

if TYPE_CHECKING:
    from mmseg_eomt.deploy.tensorrt.record import Profile


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is still the same model.

    Args:
        agreement: Least share of pixels with the same label.
        largest: Largest difference of a score.
        mean: Largest mean difference of scores.

    Differences are counted in units of the largest score of the reference.
    """

    agreement: float
    largest: float
    mean: float


LIMITS = {
    # Rounding of another order of operations.
    "fp32": Limits(agreement=0.9999, largest=1e-3, mean=1e-5),
    # A mask's edge moves by a fraction of a pixel: a few scores change much, the mean little.
    "fp16": Limits(agreement=0.995, largest=0.2, mean=2e-3),
    "bf16": Limits(agreement=0.98, largest=0.5, mean=1e-2),
    # Only a dataset can tell whether these errors matter; the limits catch what is broken.
    "int8": Limits(agreement=0.9, largest=1.0, mean=5e-2),
}

DROPS = {"fp32": 0.05, "fp16": 0.2, "bf16": 0.5, "int8": 1.0}
"""By how much mIoU, in percent, may drop on a dataset."""


Run = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
"""Runs a batch; outputs by name."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One input shape.

    Args:
        shape: Of the input.
        classes: How many classes ONNX Runtime found.
        agreement: Share of pixels with the same label.
    """

    shape: tuple[int, ...]
    classes: int
    agreement: float


def check_engine(
    engine: Run, reference: Run, metadata: DeployMetadata, profile: Profile
) -> list[Agreement]:
    """Compare label maps at the smallest, the best and the largest input, on made pictures.

    Args:
        engine: The engine.
        reference: ONNX Runtime with the file that the engine was built of.
        metadata: Of both.
        profile: Shapes that the engine takes.

    Raises:
        ValueError: If fewer labels are the same than `mmseg_eomt.deploy.agreement.LIMITS` allows.
    """
    found = []
    for shape in dict.fromkeys((profile.minimum, profile.optimum, profile.maximum)):
        size = shape[1:3] if metadata.input.layout == "NHWC" else shape[2:4]
        pictures = made_pictures(shape[0], (size[0], size[1]), channels=metadata.model.in_channels)
        images = graph_input(pictures, metadata)
        ours, theirs = _labels(engine(images)), _labels(reference(images))
        found.append(Agreement(shape, len(np.unique(theirs)), float((ours == theirs).mean())))
    limit = LIMITS[metadata.precision].agreement
    for item in found:
        if not item.agreement >= limit:
            raise ValueError(
                f"The engine differs from ONNX Runtime: for an input of {list(item.shape)} "
                f"{item.agreement:.4%} of the labels are the same, allowed are {limit:.2%} "
                f"({metadata.precision}). Choose a higher precision, or another TensorRT."
            )
    return found


def _labels(outputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Label maps `[B, H, W]`."""
    if "labels" in outputs:
        return outputs["labels"]
    return np.asarray(outputs["scores"].argmax(1))
