"""What a label map asks for: which classes each image shows, without a mask per class.

Shapes: B images, K classes, H/W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
