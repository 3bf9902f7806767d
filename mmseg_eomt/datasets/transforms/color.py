"""Colour jitter and dropped channels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_GREYS = np.arange(256, dtype=np.float64)


@TRANSFORMS.register_module()
class EoMTColorJitter(BaseTransform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue, each drawn by itself with probability 0.5.

    Brightness multiplies. Contrast blends with the mean grey and comes, by a fair draw, before
    or after saturation (blend with the pixel's grey) and hue (shift on the colour circle). Values
    are rounded to bytes after each. Images that do not have three channels are left alone, as
    there is no hue to shift.

    Source: tue-mps/eomt @7bd19dd, datasets/transforms.py (factors and order).

    Args:
        brightness (float): Factor is uniform in 1 +- this. Defaults to 32/255.
        contrast (float): Factor is uniform in 1 +- this. Defaults to 0.5.
        saturation (float): Factor is uniform in 1 +- this. Defaults to 0.5.
        hue (float): Shift is uniform in +- this part of a turn. Defaults to 18/360.
        prob (float): Probability of each. Defaults to 0.5.
    """

    def __init__(
        self,
        *,
        brightness: float = 32 / 255,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18 / 360,
        prob: float = 0.5,
    ) -> None:
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in strengths.items():
            if not 0 <= value <= 1:
                raise ValueError(f"EoMTColorJitter: {name} is {value}; allowed are 0 to 1.")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"EoMTColorJitter: hue is {hue}; allowed are 0 to 0.5 of a turn.")
        if not 0 <= prob <= 1:
            raise ValueError(f"EoMTColorJitter: prob is {prob}; allowed are 0 to 1.")
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue = hue
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img``, ``uint8 [H, W, 3]`` BGR."""
        image = results["img"]
        if image.ndim != 3 or image.shape[2] != 3:
            return results
        if self._chosen():
            image = adjust_brightness(image, self._factor(self.brightness))
        contrast_first = self._chosen()
        if contrast_first and self._chosen():
            image = adjust_contrast(image, self._factor(self.contrast))
        if self._chosen():
            image = adjust_saturation(image, self._factor(self.saturation))
        if self._chosen():
            image = adjust_hue(image, np.random.uniform(-self.hue, self.hue))
        if not contrast_first and self._chosen():
            image = adjust_contrast(image, self._factor(self.contrast))
        results["img"] = image
        return results

    def _chosen(self) -> bool:
        return bool(np.random.random() < self.prob)

    def _factor(self, strength: float) -> float:
        return float(np.random.uniform(1 - strength, 1 + strength))

    def __repr__(self) -> str:
        return (
            f"EoMTColorJitter(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, prob={self.prob})"
        )


def adjust_brightness(image: Bytes, factor: float) -> Bytes:
    """``image * factor``."""
    return _look_up(image, _GREYS * factor)


def adjust_contrast(image: Bytes, factor: float) -> Bytes:
    """Blend of ``image`` and its mean grey; 0 is all grey, 1 changes nothing."""
    mean = float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[0])
    return _look_up(image, _GREYS * factor + mean * (1 - factor))


def adjust_saturation(image: Bytes, factor: float) -> Bytes:
    """Blend of ``image`` and its greys; 0 is grey, 1 changes nothing."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.addWeighted(image, factor, grey, 1 - factor, 0.0), dtype=np.uint8)


def adjust_hue(image: Bytes, shift: float) -> Bytes:
    """Turns the hue by ``shift`` of a full turn.

    Done in float, since hue in 8 bits has steps of 1.4 degrees.
    """
    hsv: NDArray[np.float32] = np.asarray(
        cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2HSV), dtype=np.float32
    )
    hue = hsv[..., 0]  # degrees
    hue += 360 * shift
    hue[hue < 0] += 360
    hue[hue >= 360] -= 360
    return np.asarray(np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)), dtype=np.uint8)


def _look_up(image: Bytes, table: NDArray[np.float64]) -> Bytes:
    rounded = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, rounded), dtype=np.uint8)


@TRANSFORMS.register_module()
class ChannelDrop(BaseTransform):  # type: ignore[misc]
    """Sets some channels of the image to a constant, so that the model relies on none alone.

    How many is uniform in 1 to ``max_dropped``; one channel stays in any case.

    Args:
        max_dropped (int): Most channels that are dropped at once. Defaults to 1.
        prob (float): Probability to drop any. Defaults to 0.5.
        fill (int): What takes their place, 0 to 255, before normalisation. Defaults to 0.
    """

    def __init__(self, *, max_dropped: int = 1, prob: float = 0.5, fill: int = 0) -> None:
        if max_dropped < 1:
            raise ValueError(f"ChannelDrop: max_dropped is {max_dropped}; allowed are 1 and more.")
        if not 0 <= prob <= 1:
            raise ValueError(f"ChannelDrop: prob is {prob}; allowed are 0 to 1.")
        if not 0 <= fill <= 255:
            raise ValueError(f"ChannelDrop: fill is {fill}; allowed are 0 to 255.")
        self.max_dropped, self.prob, self.fill = max_dropped, prob, fill

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img`` ``[H, W, C]``."""
        image = results["img"]
        channels = image.shape[2]
        most = min(self.max_dropped, channels - 1)
        if most < 1 or np.random.random() >= self.prob:
            return results
        count = int(np.random.randint(1, most + 1))
        dropped = np.random.permutation(channels)[:count]
        image = image.copy()
        image[..., dropped] = self.fill
        results["img"] = image
        return results

    def __repr__(self) -> str:
        return f"ChannelDrop(max_dropped={self.max_dropped}, prob={self.prob}, fill={self.fill})"
