"""Random scale and crop of the training, and crops around rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray

from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.images.resampling import resize_labels_region, resize_region


class _Crop(NamedTuple):
    scaled: tuple[int, int]
    region: dict[str, int]
    maps: dict[str, NDArray[Any]]
    labelled: bool


@TRANSFORMS.register_module()
class ScaleJitterCrop(BaseTransform):  # type: ignore[misc]
    """Scales with the aspect kept, pads right and bottom, and crops to a fixed size.

    With crop ``(H, W)`` and image ``(h, w)`` the factor is ``min(H/h, W/w) * s``, s uniform in
    ``scale``: at s = 1 the image just fits inside the crop. The image is padded with 0 (before
    normalisation, so not with the mean), labels with 255. A crop without any labelled pixel, or
    with too much of one class (``cat_max_ratio``), is redrawn, scale and place: ``max_tries``
    draws at most. Then the last one with a labelled pixel is kept, or else the last.

    Source: tue-mps/eomt @7bd19dd, datasets/transforms.py (ScaleJitter, pad, RandomCrop); there
    the colour jitter and flip are redrawn as well, and without limit. Only what the crop needs
    is resized, as if the whole had been: see `resize_region`.

    Args:
        size (int | tuple[int, int]): Crop size, ``(height, width)``.
        scale (tuple[float, float]): Range of s. Defaults to (0.5, 2.0).
        max_tries (int): Most draws per sample. Defaults to 20.
        cat_max_ratio (float): Largest share of the labelled pixels that one class may have, as
            in mmseg's RandomCrop. Defaults to 1.0: any.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        max_tries: int = 20,
        cat_max_ratio: float = 1.0,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise ValueError(f"ScaleJitterCrop: size is {size}; allowed are sizes of 1 and more.")
        self.scale = (float(scale[0]), float(scale[1]))
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"ScaleJitterCrop: scale is {scale}; allowed is 0 < low <= high.")
        if max_tries < 1:
            raise ValueError(f"ScaleJitterCrop: max_tries is {max_tries}; allowed are 1 and more.")
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(
                f"ScaleJitterCrop: cat_max_ratio is {cat_max_ratio}; allowed are shares above 0 "
                "and up to 1."
            )
        self.max_tries = max_tries
        self.cat_max_ratio = cat_max_ratio

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crops ``img`` ``[h, w, C]`` and the maps named in ``seg_fields`` to ``size``."""
        image = results["img"]
        fields = results.get("seg_fields", [])
        whole = results["gt_seg_map"] if "gt_seg_map" in fields else None
        kept: _Crop | None = None
        for _ in range(self.max_tries):
            scaled, region = self._draw(image.shape[0], image.shape[1], whole)
            maps = {
                key: self._pad(resize_labels_region(results[key], scaled, **region), IGNORED)
                for key in fields
            }
            share = _largest_share(maps.get("gt_seg_map"), counted=self.cat_max_ratio < 1)
            if share > 0 or kept is None or not kept.labelled:
                kept = _Crop(scaled, region, maps, labelled=share > 0)
            if 0 < share <= self.cat_max_ratio:
                break
        assert kept is not None  # max_tries is 1 or more
        scaled, region, maps, _ = kept
        results.update(maps)
        results["scale_factor"] = (scaled[1] / image.shape[1], scaled[0] / image.shape[0])
        results["img"] = self._pad(resize_region(image, scaled, **region), 0)
        results["img_shape"] = results["pad_shape"] = self.size
        results["keep_ratio"] = True
        return results

    def _draw(
        self, rows: int, cols: int, labels: NDArray[Any] | None
    ) -> tuple[tuple[int, int], dict[str, int]]:
        """Size of the whole scaled image, and the region of it that the crop shows."""
        height, width = self.size
        factor = min(height / rows, width / cols) * np.random.uniform(*self.scale)
        scaled = (max(1, int(rows * factor)), max(1, int(cols * factor)))
        region = {
            "top": np.random.randint(0, max(0, scaled[0] - height) + 1),
            "left": np.random.randint(0, max(0, scaled[1] - width) + 1),
            "height": min(height, scaled[0]),
            "width": min(width, scaled[1]),
        }
        return scaled, region

    def _pad(self, array: NDArray[Any], value: int) -> NDArray[Any]:
        rows, cols = array.shape[:2]
        if (rows, cols) == self.size:
            return array
        padded = np.full((*self.size, *array.shape[2:]), value, dtype=array.dtype)
        padded[:rows, :cols] = array
        return padded

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(size={self.size}, scale={self.scale}, "
            f"max_tries={self.max_tries}, cat_max_ratio={self.cat_max_ratio})"
        )


def _largest_share(labels: NDArray[Any] | None, *, counted: bool) -> float:
    """Share of the largest class among the labelled pixels, 0 if none is labelled.

    Without labels, or if it need not be ``counted``, 1 stands for any share.
    """
    if labels is None:
        return 1.0
    if not counted:
        return float(bool((labels != IGNORED).any()))
    counts = np.bincount(labels[labels != IGNORED].ravel())
    return float(counts.max() / counts.sum()) if counts.size else 0.0


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
