"""Bilinear values of label maps and mask logits at points.

A point is ``(x, y)`` in [0, 1] x [0, 1], relative to the image, so that label maps and mask logits
of different sizes meet. Values are those of ``F.grid_sample(..., align_corners=False)`` with zeros
outside the image.

Shapes: B images, G masks, P points, K classes, H/W pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_neighbours(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The four pixels around each point, and their bilinear weights.

    Args:
        points (Tensor): ``[..., P, 2]`` relative (x, y).
        size (tuple[int, int]): Height and width of the map in pixels.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Flat pixel index (int64), weight (float32) and whether the
        neighbour lies inside the map (bool), ``[4, ..., P]`` each. One outside has the index of
        the nearest pixel inside.
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
    weight_x = torch.stack([1 - right_weight, right_weight])
    weight_y = torch.stack([1 - bottom_weight, bottom_weight])
    index = rows.clamp(0, height - 1)[:, None] * width + columns.clamp(0, width - 1)[None]
    weights = weight_y[:, None] * weight_x[None]
    inside = inside_y[:, None] & inside_x[None]
    return index.flatten(0, 1), weights.flatten(0, 1), inside.flatten(0, 1)


@dataclass(frozen=True)
class LabelSamples:
    """Labels and bilinear weights of the four neighbours of points.

    One look-up holds the value of every class mask at the points: the value of class c is the
    weight of the neighbours that carry c.

    Attributes:
        codes (Tensor): ``[4, B, P]`` labels; the highest code is the ignored one.
        weights (Tensor): ``[4, 1 or B, P]`` bilinear weights.
        inside (Tensor): ``[4, 1 or B, P]`` whether the neighbour lies inside the map.
        ignored_code (int): The code of ignored pixels.
    """

    codes: Tensor
    weights: Tensor
    inside: Tensor
    ignored_code: int

    def class_values(self, slots: Tensor, num_slots: int) -> Tensor:
        """Bilinear values of class masks at the points.

        Args:
            slots (Tensor): ``[B, codes]`` int64, for each image the row of the result that each
                code adds to; ``num_slots`` for a code that is not wanted.
            num_slots (int): M, rows an image.

        Returns:
            Tensor: ``[B, M, P]`` float32.
        """
        batch, num_points = self.codes.shape[1:]
        # One row more takes what is not wanted. Each of the four passes writes a place at most
        # once, so that the sums come out the same on every run, atomic additions or not.
        values = torch.zeros(batch, num_slots + 1, num_points, device=slots.device)
        for codes, weights in zip(self.codes, self.weights * self.inside, strict=True):
            rows = slots.gather(1, codes.long())[:, None]
            values.scatter_add_(1, rows, weights.expand(batch, -1)[:, None])
        return values[:, :num_slots]

    def labelled_share(self) -> Tensor:
        """Bilinear share of labelled pixels, ``[B, P]``.

        Outside the map the border pixels repeat, so that the share is exactly 1 where all pixels
        around a point are labelled, and exactly 0 where all are ignored, up to the edges.
        """
        labelled = ((self.codes != self.ignored_code) * self.weights).sum(0)
        return labelled / self.weights.sum(0)


def sample_labels(codes: Tensor, points: Tensor, *, ignored_code: int) -> LabelSamples:
    """Look up the label maps ``codes[B, H, W]`` at ``points[P, 2]``, or ``[B, P, 2]``.

    Points without an image dimension are shared by all images: their weights are computed once.
    """
    index, weights, inside = bilinear_neighbours(points, (codes.shape[-2], codes.shape[-1]))
    flat = codes.flatten(1)
    if points.dim() == 2:
        looked_up = flat.gather(1, index.flatten().expand(len(flat), -1))  # [B, 4 * P]
        looked_up = looked_up.view(len(flat), *index.shape).transpose(0, 1)  # [4, B, P]
        return LabelSamples(looked_up, weights[:, None], inside[:, None], ignored_code)
    looked_up = torch.stack([flat.gather(1, plane) for plane in index])
    return LabelSamples(looked_up, weights, inside, ignored_code)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``[G, P]`` of ``maps[G, h, w]`` at ``points[P, 2]``, or ``[G, P, 2]``.

    The maps go in as a batch, not as channels of one image: grid_sample then reads one map at a
    time, which is 4 times as fast on a CPU. Shared points are expanded as a view, not copied.
    """
    grid = (2 * points - 1).expand(len(maps), -1, -1)[:, :, None]  # [G, P, 1, 2]
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, :, 0]


class PointSampler:
    """Bilinear values of any number of maps of one size at the points that they share.

    The same numbers as :func:`sample_maps`, point by point: one weighted sum of four rows of
    neighbouring numbers each, which takes 60 % of the time on a CPU. Without a gradient.

    Args:
        points (Tensor): ``[P, 2]``.
        size (tuple[int, int]): Height and width of the maps in pixels.
    """

    def __init__(self, points: Tensor, size: tuple[int, int]) -> None:
        index, weights, inside = bilinear_neighbours(points, size)
        self._index = index.t().contiguous()  # [P, 4]
        self._weights = (weights * inside).t().contiguous()

    def __call__(self, maps: Tensor) -> Tensor:
        """Values ``[P, G]`` of ``maps[G, h, w]``."""
        rows = maps.detach().flatten(1).t().contiguous()  # [h * w, G]
        return F.embedding_bag(self._index, rows, per_sample_weights=self._weights, mode="sum")


def smallest(rows: Tensor, count: int) -> Tensor:
    """Indices ``[G, count]`` of the smallest numbers of each of ``rows[G, N]``, in any order.

    On a CPU a partition in numpy takes a quarter of the time of torch's ``topk``; it releases the
    interpreter, so that threads share the rows.
    """
    if rows.device.type != "cpu":
        return rows.topk(count, dim=1, largest=False, sorted=False).indices
    chosen = np.empty((len(rows), count), dtype=np.int64)
    values = rows.numpy()

    def choose(number: int) -> None:
        row = values[number]
        bound = np.partition(row, count - 1)[count - 1]
        found = np.flatnonzero(row <= bound)
        if len(found) != count:  # some equal the bound and are too many, or there is a nan
            found = np.argpartition(row, count - 1)[:count]
        chosen[number] = found

    if count:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(choose, range(len(rows))))
    return torch.from_numpy(chosen)


class _ChosenValues(torch.autograd.Function):
    """Values of maps at chosen points of a pool that they have been sampled at already.

    Keeps nothing but the choice: 4 bytes a value, where ``grid_sample`` keeps maps and points.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, pool_values: Tensor, index: Tensor, pool: Tensor) -> Tensor:
        ctx.save_for_backward(index.int(), pool)
        ctx.shape = maps.shape
        return pool_values.gather(1, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, pool = ctx.saved_tensors
        count, height, width = ctx.shape
        grid = F.embedding(index, 2 * pool - 1)[:, :, None]  # [G, P, 1, 2]
        # The gradient to the maps is linear in them: only their shape is read.
        maps = gradient.new_zeros(()).expand(count, 1, height, width)
        to_maps, _ = torch.ops.aten.grid_sampler_2d_backward(
            gradient[:, None, :, None], maps, grid, 0, 0, False, [True, False]
        )
        return to_maps[:, 0], None, None, None


def chosen_values(maps: Tensor, pool_values: Tensor, index: Tensor, pool: Tensor) -> Tensor:
    """Values ``[G, P]`` of ``maps[G, h, w]`` at points chosen from ``pool[N, 2]``.

    Args:
        maps (Tensor): ``[G, h, w]`` float32; the gradient goes to them.
        pool_values (Tensor): ``[G, N]``, :func:`sample_maps` of the maps at the pool.
        index (Tensor): ``[G, P]`` int64, which points of the pool.
        pool (Tensor): ``[N, 2]``.

    Returns:
        Tensor: ``[G, P]``, equal to ``sample_maps(maps, pool[index])`` in value and gradient.
    """
    values: Tensor = _ChosenValues.apply(maps, pool_values, index, pool)
    return values


def softplus_sum(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Sum of ``softplus(logits[P, ...])`` over the first dimension.

    softplus(x) = max(x, 0) - log(sigmoid(|x|)), and a sum of logarithms is the logarithm of a
    product. The factors lie in [1/2, 1], so that 64 of them fit a float32, and one logarithm does
    for 64 points.

    Args:
        logits (Tensor): ``[P, ...]``.
        probabilities (Tensor): Their sigmoid.
    """
    factors = (probabilities - 0.5).abs_().add_(0.5)  # sigmoid(|x|)
    missing = -len(factors) % 64
    if missing:
        factors = torch.cat([factors, factors.new_ones(missing, *factors.shape[1:])])
    logarithms = factors.view(-1, 64, *logits.shape[1:]).prod(1).log_()
    return logits.clamp(min=0).sum(0) - logarithms.sum(0)
