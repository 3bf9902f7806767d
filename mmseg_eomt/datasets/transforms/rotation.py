"""Rotations; what comes in from outside the image is unlabelled."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray

from mmseg_eomt.datasets.label_table import IGNORED


@TRANSFORMS.register_module()
class RandomRotation(BaseTransform):  # type: ignore[misc]
    """Turns image and labels about the centre by a random angle; the size is kept.

    Corners that come in from outside are 0 in the image, as the padding of `ScaleJitterCrop` is,
    and 255, unlabelled, in the labels: never a class. The image is interpolated linearly, labels
    take the nearest pixel.

    Args:
        max_angle (float): The angle is uniform in +- this, in degrees. Defaults to 10.0.
        prob (float): Probability to turn. Defaults to 0.5.
    """

    def __init__(self, *, max_angle: float = 10.0, prob: float = 0.5) -> None:
        if not 0 < max_angle <= 180:
            raise ValueError(
                f"RandomRotation: max_angle is {max_angle}; allowed are degrees above 0 and up to "
                "180."
            )
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomRotation: prob is {prob}; allowed are 0 to 1.")
        self.max_angle = max_angle
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Turns ``img`` ``[H, W, C]`` and the maps named in ``seg_fields``."""
        if np.random.random() >= self.prob:
            return results
        angle = float(np.random.uniform(-self.max_angle, self.max_angle))
        results["img"] = rotate_image(results["img"], angle)
        for key in results.get("seg_fields", []):
            results[key] = rotate_labels(results[key], angle)
        return results

    def __repr__(self) -> str:
        return f"RandomRotation(max_angle={self.max_angle}, prob={self.prob})"


@TRANSFORMS.register_module()
class RandomQuarterTurn(BaseTransform):  # type: ignore[misc]
    """Turns by 90, 180 or 270 degrees, which loses nothing; for pictures without an up.

    Width and height are exchanged by 90 and 270 degrees.

    Args:
        prob (float): Probability to turn; the three turns are equally likely. Defaults to 0.75,
            which makes all four ways equally likely.
    """

    def __init__(self, *, prob: float = 0.75) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomQuarterTurn: prob is {prob}; allowed are 0 to 1.")
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Turns ``img`` ``[H, W, C]`` and the maps named in ``seg_fields``."""
        if np.random.random() >= self.prob:
            return results
        quarters = int(np.random.randint(1, 4))
        for key in ["img", *results.get("seg_fields", [])]:
            results[key] = np.ascontiguousarray(np.rot90(results[key], quarters))
        results["img_shape"] = results["pad_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        return f"RandomQuarterTurn(prob={self.prob})"


def rotate_image(image: NDArray[Any], angle: float) -> NDArray[Any]:
    """``[H, W, C]`` turned counter-clockwise by ``angle`` degrees, linear, 0 from outside."""
    rows, cols, channels = image.shape
    matrix = _matrix(rows, cols, angle)
    # OpenCV takes at most four channels at once, and rounds by their number.
    parts = [image] if channels <= 4 else [image[..., c : c + 1] for c in range(channels)]
    turned = [
        cv2.warpAffine(np.ascontiguousarray(part), matrix, (cols, rows), flags=cv2.INTER_LINEAR)
        for part in parts
    ]
    whole: NDArray[Any] = np.concatenate(
        [part.reshape(rows, cols, -1) for part in turned], axis=2, dtype=image.dtype
    )
    return whole


def rotate_labels(labels: NDArray[Any], angle: float) -> NDArray[Any]:
    """``[H, W]`` turned as `rotate_image` does, nearest pixel, 255 from outside."""
    rows, cols = labels.shape
    inverse = cv2.invertAffineTransform(_matrix(rows, cols, angle))
    y, x = np.mgrid[:rows, :cols]
    source_x = np.rint(inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(np.intp)
    source_y = np.rint(inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(np.intp)
    inside = (source_x >= 0) & (source_x < cols) & (source_y >= 0) & (source_y < rows)
    turned = np.full_like(labels, IGNORED)
    turned[inside] = labels[source_y[inside], source_x[inside]]
    return turned


def _matrix(rows: int, cols: int, angle: float) -> NDArray[np.float64]:
    """Pixel centres have whole coordinates here, so the middle is half a pixel less."""
    matrix = cv2.getRotationMatrix2D(((cols - 1) / 2, (rows - 1) / 2), angle, 1.0)
    return np.asarray(matrix, dtype=np.float64)
