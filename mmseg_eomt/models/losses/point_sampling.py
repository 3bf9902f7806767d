"""Bilinear values of label maps and mask logits at points.

A point is ``(x, y)`` in [0, 1] x [0, 1], relative to the image, so that label maps and mask logits
of different sizes meet. Values are those of ``F.grid_sample(..., align_corners=False)`` with zeros
outside the image.

Shapes: B images, G masks, P points, K classes, H/W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_neighbours(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, and their bilinear weights.

    Args:
        points (Tensor): ``[..., P, 2]`` relative (x, y).
        size (tuple[int, int]): Height and width of the map in pixels.

    Returns:
        tuple[Tensor, Tensor]: Flat pixel index (int64) and weight (float32), ``[4, ..., P]`` each.
        A neighbour outside the map has weight 0 and the index of the nearest pixel inside.
    """
    height, width = size
    # The order of operations is grid_sample's own: another one moves points of large maps by an
    # ulp of the pixel coordinate, which shows as 3e-5 in the weights at 512 pixels.
    x = (2 * points[..., 0] - 1) * (width / 2) + (width - 1) / 2
    y = (2 * points[..., 1] - 1) * (height / 2) + (height - 1) / 2
    left, top = x.floor(), y.floor()
    right_weight, bottom_weight = x - left, y - top
    columns = torch.stack([left, left + 1]).long()
    rows = torch.stack([top, top + 1]).long()
    inside_x = (columns >= 0) & (columns < width)
    inside_y = (rows >= 0) & (rows < height)
    weight_x = torch.stack([1 - right_weight, right_weight]) * inside_x
    weight_y = torch.stack([1 - bottom_weight, bottom_weight]) * inside_y
    index = rows.clamp(0, height - 1)[:, None] * width + columns.clamp(0, width - 1)[None]
    return index.flatten(0, 1), (weight_y[:, None] * weight_x[None]).flatten(0, 1)


@dataclass(frozen=True)
class LabelSamples:
    """Labels and bilinear weights of the four neighbours of points.

    One look-up holds the value of every class mask at the points: the value of class c is the
    weight of the neighbours that carry c.

    Attributes:
        codes (Tensor): ``[4, B, P]`` labels; the highest code is the ignored one.
        weights (Tensor): ``[4, 1 or B, P]`` bilinear weights.
        ignored_code (int): The code of ignored pixels.
    """

    codes: Tensor
    weights: Tensor
    ignored_code: int

    def values_of(self, classes: Tensor) -> Tensor:
        """Bilinear values ``[B, M, P]`` of the masks of ``classes[B, M]``, M of each image."""
        wanted = classes.to(self.codes.dtype)[..., None]
        values = torch.zeros(
            *classes.shape, self.codes.shape[-1], dtype=torch.float32, device=classes.device
        )
        for codes, weights in zip(self.codes, self.weights, strict=True):
            values.addcmul_((codes[:, None] == wanted).float(), weights[:, None])
        return values

    def labelled_share(self) -> Tensor:
        """One minus the bilinear share of ignored pixels, ``[B, P]``.

        What lies outside the map is not ignored: it is background, as everywhere else. A map
        without ignored pixels has a share of exactly 1 at every point.
        """
        ignored = ((self.codes == self.ignored_code) * self.weights).sum(0)
        return (1 - ignored).clamp(min=0)

    def take(self, images: Tensor, index: Tensor) -> LabelSamples:
        """Samples of ``images[G]`` at the points ``index[G, P']`` of each, in that order."""
        codes = torch.stack([plane[images].gather(1, index) for plane in self.codes])
        if self.weights.shape[1] == 1:
            weights = torch.stack([plane[0][index] for plane in self.weights])
        else:
            weights = torch.stack([plane[images].gather(1, index) for plane in self.weights])
        return LabelSamples(codes, weights, self.ignored_code)


def sample_labels(codes: Tensor, points: Tensor, *, ignored_code: int) -> LabelSamples:
    """Look up the label maps ``codes[B, H, W]`` at ``points[P, 2]``, or ``[B, P, 2]``.

    Points without an image dimension are shared by all images: their weights are computed once.
    """
    index, weights = bilinear_neighbours(points, (codes.shape[-2], codes.shape[-1]))
    flat = codes.flatten(1)
    if points.dim() == 2:
        looked_up = flat[:, index].transpose(0, 1)  # [4, B, P]
        return LabelSamples(looked_up, weights[:, None], ignored_code)
    looked_up = torch.stack([flat.gather(1, plane) for plane in index])
    return LabelSamples(looked_up, weights, ignored_code)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``[G, P]`` of ``maps[G, h, w]`` at ``points[P, 2]``, or ``[G, P, 2]``.

    The maps go in as a batch, not as channels of one image: grid_sample then reads one map at a
    time, which is 4 times as fast on a CPU. Shared points are expanded as a view, not copied.
    """
    grid = (2 * points - 1).expand(len(maps), -1, -1)[:, :, None]  # [G, P, 1, 2]
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, :, 0]
