"""Counts for boundary IoU: overlap of what lies near the outlines of a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Stands for what belongs to no class: ignored pixels, and all outside the image.
_NOTHING = -1


def boundary_width(height: int, width: int, share: float) -> int:
    """Pixels of a band that is ``share`` of the image's diagonal wide; at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def count_boundary(
    prediction: Tensor, label: Tensor, *, num_classes: int, ignore_index: int, share: float
) -> Tensor:
    """Counts pixels near outlines (Cheng et al., Boundary IoU, CVPR 2021).

    A pixel of a class is near its outline if the square of ``2 * width + 1`` pixels around it holds
    anything else. The border of the image is an outline. So is the edge of ignored pixels, which
    are ignored in the prediction as well.

    Args:
        prediction (Tensor): Integer ``[H, W]``, 0 to K - 1 where the label counts.
        label (Tensor): Integer ``[H, W]``, 0 to K - 1 or ``ignore_index``.
        num_classes (int): K.
        ignore_index (int): Label of pixels that do not count.
        share (float): Width of the band over the image's diagonal.

    Returns:
        Tensor: ``int64 [3, K]`` on the device of ``prediction``: pixels in the bands of the label,
        of the prediction, and of both with the same class.
    """
    label = label.to(device=prediction.device, dtype=torch.int64)
    ignored = label == ignore_index
    truth = label.masked_fill(ignored, _NOTHING)
    found = prediction.to(torch.int64).masked_fill(ignored, _NOTHING)
    width = boundary_width(truth.shape[0], truth.shape[1], share)
    near_truth = _near_outline(truth, width) & ~ignored
    near_found = _near_outline(found, width) & ~ignored
    both = near_truth & near_found & (truth == found)
    return torch.stack(
        [
            torch.bincount(values[mask], minlength=num_classes)
            for values, mask in ((truth, near_truth), (found, near_found), (truth, both))
        ]
    )


def _near_outline(labels: Tensor, width: int) -> Tensor:
    """Whether the square around a pixel holds more than one label, for all classes at once."""
    values = functional.pad(labels[None, None].float(), (width,) * 4, value=_NOTHING)
    largest, smallest = values, -values
    for kernel in ((1, 2 * width + 1), (2 * width + 1, 1)):
        largest = functional.max_pool2d(largest, kernel, stride=1)
        smallest = functional.max_pool2d(smallest, kernel, stride=1)
    return (largest != -smallest)[0, 0]
