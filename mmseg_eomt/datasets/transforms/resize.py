"""The validation rule: short side to the window size."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmseg_eomt.images.resampling import resize_to_cover


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):  # type: ignore[misc]
    """Resizes the image, aspect kept, until it just covers the window on both sides.

    The rule is that of `images.short_side`. ``ori_shape`` and the annotations stay as they are:
    predictions are compared at the original size.

    Args:
        size (int | tuple[int, int]): Window size, ``(height, width)``.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise ValueError(f"ResizeShortSide: size is {size}; allowed are sizes of 1 and more.")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes ``img`` ``[h, w, C]``."""
        rows, cols = results["img"].shape[:2]
        results["img"] = resize_to_cover(results["img"], self.size)
        height, width = results["img"].shape[:2]
        results["img_shape"] = results["pad_shape"] = (height, width)
        results["scale_factor"] = (width / cols, height / rows)
        results["keep_ratio"] = True
        return results

    def __repr__(self) -> str:
        return f"ResizeShortSide(size={self.size})"
