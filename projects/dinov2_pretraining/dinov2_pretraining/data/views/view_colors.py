"""Colours, blur and solarisation of a view, drawn and applied to bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.datasets.transforms.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)

Bytes = NDArray[np.uint8]

_BLUR_SIZE = 9  # pixels, for any sigma


@dataclass(frozen=True, kw_only=True)
class ColorRecipe:
    """How likely and how strong the changes of one kind of view are.

    Probabilities are from 0 to 1. Factors are uniform in 1 +- strength.

    Args:
        jitter_prob (float): Of all four changes of colour together, in random order.
        brightness (float): Strength.
        contrast (float): Strength.
        saturation (float): Strength.
        hue (float): Shift of at most this part of a turn.
        grey_prob (float): Of grey.
        blur_prob (float): Of a Gaussian blur over 9 x 9 pixels.
        blur_sigma (tuple[float, float]): Range of its sigma in pixels.
        solarise_prob (float): Of inverting all values of 128 and more.

    Raises:
        ValueError: If a number is out of its range.
    """

    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_prob: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_prob: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "grey", "blur", "solarise"):
            _check(f"{name}_prob", getattr(self, f"{name}_prob"), 1.0)
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), 1.0)
        _check("hue", self.hue, 0.5)
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; allowed is 0 < low <= high.")

    def apply(self, image: Bytes) -> Bytes:
        """Changes a view ``uint8 [H, W, 3]`` BGR; draws from NumPy's global generator."""
        if _chosen(self.jitter_prob):
            image = self._jitter(image)
        if _chosen(self.grey_prob):
            image = grey(image)
        if _chosen(self.blur_prob):
            image = blur(image, np.random.uniform(*self.blur_sigma))
        if _chosen(self.solarise_prob):
            image = solarise(image)
        return image

    def _jitter(self, image: Bytes) -> Bytes:
        changes: list[tuple[Callable[[Bytes, float], Bytes], float]] = [
            (adjust_brightness, _factor(self.brightness)),
            (adjust_contrast, _factor(self.contrast)),
            (adjust_saturation, _factor(self.saturation)),
            (shift_hue, np.random.uniform(-self.hue, self.hue)),
        ]
        for index in np.random.permutation(len(changes)):
            change, value = changes[index]
            image = change(image, value)
        return image


def shift_hue(image: Bytes, shift: float) -> Bytes:
    """Turns the hue by ``shift`` of a full turn, in steps of 1/256 as Pillow and torchvision do.

    Twice as fast as in floating point; the steps of 1.4 degrees do not show in an augmentation.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)  # wraps around, as a hue does
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL), dtype=np.uint8)


def grey(image: Bytes) -> Bytes:
    """Luma in all three channels."""
    luma = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.cvtColor(luma, cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def blur(image: Bytes, sigma: float) -> Bytes:
    """Gaussian over 9 x 9 pixels; the picture is mirrored at its border, without repeating it."""
    size = (_BLUR_SIZE, _BLUR_SIZE)
    blurred = cv2.GaussianBlur(image, size, sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, dtype=np.uint8)


def solarise(image: Bytes) -> Bytes:
    """Inverts all values of 128 and more."""
    return np.asarray(cv2.LUT(image, _SOLARISED), dtype=np.uint8)


_SOLARISED = np.array([v if v < 128 else 255 - v for v in range(256)], dtype=np.uint8)


def _factor(strength: float) -> float:
    return float(np.random.uniform(1 - strength, 1 + strength))


def _chosen(probability: float) -> bool:
    return bool(np.random.random() < probability)


def _check(name: str, value: float, highest: float) -> None:
    if not 0 <= value <= highest:
        raise ValueError(f"{name} is {value}; allowed are 0 to {highest:g}.")
