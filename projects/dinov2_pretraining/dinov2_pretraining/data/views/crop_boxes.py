"""Where a view lies in the image: the rule of Inception's crops, as torchvision has it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RATIO = (3 / 4, 4 / 3)
_TRIES = 10


class Box(NamedTuple):
    """A region of an image in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """A random region: a share of the image's area, and width / height.

    The share is uniform, the ratio log-uniform, the place uniform. Where ten draws do not fit
    into the image, the largest region in its centre whose ratio is allowed. Numbers come from
    NumPy's global generator.

    Args:
        image_size (tuple[int, int]): Height and width.
        scale (tuple[float, float]): Range of the share.
        ratio (tuple[float, float]): Range of width / height. Defaults to 3/4 to 4/3.
    """
    height, width = image_size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(_TRIES):
        area = height * width * np.random.uniform(*scale)
        shape = math.exp(np.random.uniform(*log_ratio))
        rows, cols = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < cols <= width:
            # Two draws, whatever the size: the views of a JPEG that was decoded at half its sides
            # are those of the whole.
            top = int(np.random.random() * (height - rows + 1))
            left = int(np.random.random() * (width - cols + 1))
            return Box(top, left, rows, cols)
    return central_box(image_size, ratio=ratio)


def central_box(image_size: tuple[int, int], *, ratio: tuple[float, float] = RATIO) -> Box:
    """The largest region in the centre with a width / height in ``ratio``."""
    height, width = image_size
    rows, cols = height, width
    if width / height < ratio[0]:
        rows = round(width / ratio[0])
    elif width / height > ratio[1]:
        cols = round(height * ratio[1])
    return Box((height - rows) // 2, (width - cols) // 2, rows, cols)


def sufficient_pixels(size: int, *, scale: float, ratio: tuple[float, float] = RATIO) -> int:
    """Pixels of an image none of whose crops has to be enlarged more than its shape demands.

    Args:
        size (int): Side of the view in pixels.
        scale (float): Smallest share of the area.
        ratio (tuple[float, float]): Range of width / height.
    """
    # The shorter side of the smallest crop is sqrt(pixels * scale * flattest ratio).
    return math.ceil(size**2 / (scale * min(ratio[0], 1 / ratio[1])))
