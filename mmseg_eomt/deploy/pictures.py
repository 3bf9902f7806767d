"""Pictures that an exported model is measured and checked on.

Shape legend: C channels, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.header import ModelHeader
from mmseg_eomt.images.reading import PixelsLike, as_pixels
from mmseg_eomt.images.resampling import resize_to_cover

Pixels = NDArray[np.uint8]
"""``[H, W, C]``, three channels as BGR: what `read_image` gives."""


def fitted(image: PixelsLike, size: tuple[int, int], *, channels: int) -> Pixels:
    """The middle of an image that was resized to just cover a size.

    Args:
        image: As for `as_pixels`.
        size: Height and width in pixels.
        channels: Channels of the model.
    """
    pixels = resize_to_cover(as_pixels(image, channels=channels), size)
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape, size, strict=False))
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


def made_pictures(count: int, size: tuple[int, int], *, channels: int) -> list[Pixels]:
    """Pictures of nothing: regions with edges, each with a texture and a shading of its own.

    The spectrum falls off as that of photographs does, which noise would not.

    Args:
        count: How many; the same ones each time.
        size: Height and width in pixels.
        channels: Channels of the model.
    """
    return [_made(np.random.default_rng((17, index)), size, channels) for index in range(count)]


def _made(rng: np.random.Generator, size: tuple[int, int], channels: int) -> Pixels:
    height, width = size

    def noise(cells: int) -> NDArray[np.float32]:
        grid = rng.normal(size=(cells, cells)).astype(np.float32)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(smooth, np.float32)

    regions = (noise(4) + 0.5 * noise(9) > 0).astype(int) + 2 * (noise(6) > 0.3)
    planes = []
    for _ in range(channels):
        level, contrast = rng.uniform(40, 215, 4), rng.uniform(2, 25, 4)
        fine = noise(32) + 0.5 * noise(64)
        planes.append(level[regions] + contrast[regions] * fine + 15 * noise(3))
    return np.asarray(np.clip(np.stack(planes, axis=-1), 0, 255), np.uint8)


def graph_input(pictures: Sequence[Pixels], metadata: DeployMetadata) -> NDArray[np.generic]:
    """A batch as the exported graph takes it.

    Args:
        pictures: Of one size.
        metadata: Says what goes in.

    Returns:
        ``float32 [B, C, H, W]``, normalised, or ``uint8 [B, H, W, C]``.
    """
    stacked = np.stack(pictures)
    if metadata.input.dtype == "float32":
        return network_input(stacked, metadata.model)
    if metadata.model.in_channels == 3 and metadata.input.channel_order == "rgb":
        stacked = stacked[..., ::-1]
    return np.ascontiguousarray(stacked)


def network_input(stacked: Pixels, header: ModelHeader) -> NDArray[np.float32]:
    """Pictures ``uint8 [B, H, W, C]`` as the network takes them: ``float32 [B, C, H, W]``."""
    if header.bgr_to_rgb and header.in_channels == 3:
        stacked = stacked[..., ::-1]
    mean, std = (np.asarray(values, np.float32) for values in (header.mean, header.std))
    normalised = (stacked.astype(np.float32) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
