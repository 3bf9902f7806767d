"""Bicubic resizing of a region of an image, with antialiasing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dinov2_pretraining.data.views.crop_boxes import Box


def resize_box(image: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A region resized as Pillow's bicubic filter does (within one grey level).

    torch's filter on bytes, because it takes a quarter of Pillow's time where the processor has
    AVX2.

    Args:
        image (ndarray): ``uint8 [H, W, C]``.
        box (Box): The region. Pixels outside it have no influence.
        size (tuple[int, int]): Height and width of the result.

    Returns:
        ndarray: ``uint8 [*size, C]``.
    """
    region = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # Channels lie last in memory: torch's fast path.
    pixels = torch.from_numpy(region).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    values: NDArray[Any] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return np.asarray(values, dtype=np.uint8)
