"""What a label map asks for: the classes of each image, and its values at points.

A point is ``(x, y)`` in [0, 1] x [0, 1], relative to the image, so that label maps and mask logits
of different sizes meet. Values are those of ``F.grid_sample(..., align_corners=False)`` with zeros
outside the image.

Shape legend: B images, K classes, H/W pixels, G masks, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LabelTargets:
    """A batch of label maps in compact form. Making one waits for no device.

    Attributes:
        codes (Tensor): ``[B, H, W]`` class ids, with ``num_classes`` at ignored pixels. ``uint8``
            where that is wide enough, so that look-ups stay in cache.
        present (Tensor): ``[B, K]`` bool, whether image b shows class k.
        extremes (Tensor): ``[2]`` smallest and largest label that is not ignored (0 stands for the
            ignored ones). The matcher checks them on the host, with what it transfers anyway.
        num_classes (int): K.
        ignore_index (int): Label of ignored pixels.
    """

    codes: Tensor
    present: Tensor
    extremes: Tensor
    num_classes: int
    ignore_index: int

    @classmethod
    def from_labels(cls, labels: Tensor, *, num_classes: int, ignore_index: int) -> LabelTargets:
        """Compact the label maps ``labels[B, H, W]``.

        Raises:
            ValueError: If ``labels`` is not a 3-D integer tensor.
        """
        if labels.dim() != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be an integer tensor [B, H, W] of class ids, found {labels.dtype} "
                f"{list(labels.shape)}; squeeze the channel dimension of stacked label maps"
            )
        labels = labels.long()
        ignored = labels == ignore_index
        extremes = torch.stack(labels.masked_fill(ignored, 0).aminmax())
        # A label out of range gets some code here; `check` reports it before the code is used.
        codes = labels.masked_fill(ignored, num_classes).clamp(0, num_classes)
        present = torch.zeros(
            len(labels), num_classes + 1, dtype=torch.bool, device=labels.device
        ).scatter_(1, codes.flatten(1), True)[:, :num_classes]
        compact = torch.uint8 if num_classes <= 255 else torch.int32
        return cls(codes.to(compact), present, extremes, num_classes, ignore_index)

    def slots(self, num_slots: int) -> tuple[Tensor, Tensor]:
        """Rows for the classes that each image shows, ascending.

        Args:
            num_slots (int): M, at least the most classes that an image shows.

        Returns:
            tuple[Tensor, Tensor]: Slot of each code, ``[B, K + 1]`` (M: has none), and class of
            each slot, ``[B, M]`` (any absent class where there is none).
        """
        order = self.present.byte().sort(dim=1, descending=True, stable=True).indices
        slot = (self.present.cumsum(1) - 1).masked_fill(~self.present, num_slots)
        ignored = slot.new_full((len(slot), 1), num_slots)
        return torch.cat([slot, ignored], dim=1), order[:, :num_slots]

    def check(self, low: int, high: int) -> None:
        """Raise unless the labels, of which ``low`` and ``high`` are the extremes, are in range.

        Raises:
            ValueError: If a label is neither a class id nor the ignored label.
        """
        if low < 0 or high >= self.num_classes:
            found = low if low < 0 else high
            raise ValueError(
                f"label map holds the value {found}; allowed are the class ids 0 to "
                f"{self.num_classes - 1} and ignore_index={self.ignore_index}. Map the dataset's "
                "values to class ids, or set num_classes or ignore_index to fit them"
            )


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
