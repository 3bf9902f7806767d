"""The validation rule: short side to the window size."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmseg_eomt.datasets.transforms.resampling import resize


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):  # type: ignore[misc]
    """Resizes the image, aspect kept, until it just covers the window on both sides.

    For a square window the short side becomes its side. Sizes are rounded as Python's `round`
    does (halves to even); bilinear with antialiasing on bytes. ``ori_shape`` and the annotations
    stay as they are: predictions are compared at the original size.

    Source: tue-mps/eomt @7bd19dd, training/mask_classification_semantic.py.

    Args:
        size (int | tuple[int, int]): Window size, ``(height, width)``.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise ValueError(f"ResizeShortSide: size is {size}; allowed are sizes of 1 and more.")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes ``img`` ``[h, w, C]``."""
        image = results["img"]
        rows, cols = image.shape[:2]
        factor = max(self.size[0] / rows, self.size[1] / cols)
        height, width = round(rows * factor), round(cols * factor)
        if (height, width) != (rows, cols):
            results["img"] = resize(image, (height, width))
        results["img_shape"] = results["pad_shape"] = (height, width)
        results["scale_factor"] = (width / cols, height / rows)
        results["keep_ratio"] = True
        return results

    def __repr__(self) -> str:
        return f"ResizeShortSide(size={self.size})"
