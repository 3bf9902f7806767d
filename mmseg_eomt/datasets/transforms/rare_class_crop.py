"""Crops that favour rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray

from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.datasets.transforms.scale_jitter_crop import ScaleJitterCrop


@TRANSFORMS.register_module()
class RareClassCrop(ScaleJitterCrop):
    """`ScaleJitterCrop` that often chooses a class first and crops around one of its pixels.

    With probability ``prob`` one of the classes that the image shows is drawn, then one of its
    pixels, then a crop from all those that hold this pixel. A small class is so found as often as
    a large one, where ``cat_max_ratio`` only throws away crops and seldom finds it.

    Args:
        size (int | tuple[int, int]): Crop size, ``(height, width)``.
        prob (float): Share of the draws that choose a class. Defaults to 0.5.
        class_weights (Sequence[float], optional): How likely each class is, by internal id;
            need not add up to 1. A weight of 0 never draws the class. Defaults to None: all
            classes of the image alike.
        **options: As for `ScaleJitterCrop`.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        prob: float = 0.5,
        class_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size, **options)
        if not 0 <= prob <= 1:
            raise ValueError(f"RareClassCrop: prob is {prob}; allowed are 0 to 1.")
        self.prob = prob
        self.class_weights = None if class_weights is None else np.asarray(class_weights, float)
        weights = self.class_weights
        if weights is not None and not (
            weights.ndim == 1 and np.isfinite(weights).all() and (weights >= 0).all()
        ):
            raise ValueError(
                f"RareClassCrop: class_weights is {class_weights}; allowed is one number of 0 or "
                "more for each class."
            )

    def _draw(
        self, rows: int, cols: int, labels: NDArray[Any] | None
    ) -> tuple[tuple[int, int], dict[str, int]]:
        scaled, region = super()._draw(rows, cols, labels)
        if labels is None or np.random.random() >= self.prob:
            return scaled, region
        pixel = self._pixel(labels)
        if pixel is None:
            return scaled, region
        for side, begin, length, place, whole in (
            (0, "top", "height", pixel[0], rows),
            (1, "left", "width", pixel[1], cols),
        ):
            middle = min(int((place + 0.5) * scaled[side] / whole), scaled[side] - 1)
            low = max(0, middle - region[length] + 1)
            high = min(middle, scaled[side] - region[length])
            region[begin] = int(np.random.randint(low, high + 1))
        return scaled, region

    def _pixel(self, labels: NDArray[Any]) -> tuple[int, int] | None:
        """Row and column of a pixel of a class drawn; None if none can be drawn."""
        counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
        counts[IGNORED] = 0
        shown = np.flatnonzero(counts)
        if self.class_weights is None:
            weights = np.ones(len(shown))
        elif len(shown) and shown[-1] >= len(self.class_weights):
            raise ValueError(
                f"RareClassCrop: class_weights has {len(self.class_weights)} entries, but the "
                f"image shows class {shown[-1]}. Give one for each class."
            )
        else:
            weights = self.class_weights[shown]
        if not weights.sum() > 0:
            return None
        chosen = shown[
            np.searchsorted(np.cumsum(weights), np.random.random() * weights.sum(), "right")
        ]
        places = np.flatnonzero(labels.ravel() == chosen)
        row, col = divmod(int(places[np.random.randint(len(places))]), labels.shape[1])
        return row, col
