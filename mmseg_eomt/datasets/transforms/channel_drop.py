"""Leaving out channels, for images of several sensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS


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
