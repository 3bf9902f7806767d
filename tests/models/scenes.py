"""Small random label maps and predictions."""

from __future__ import annotations

import torch
from torch import Tensor


def make_labels(num_classes: int, images: int = 3) -> Tensor:
    """Label maps ``[B, 48, 64]`` of 8 px blocks; about one block in K + 1 is ignored."""
    blocks = torch.randint(0, num_classes + 1, (images, 6, 8))
    blocks[blocks == num_classes] = 255
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def make_predictions(
    num_classes: int, *, images: int = 3, queries: int = 12, predictions: int = 3
) -> list[tuple[Tensor, Tensor]]:
    """Logits ``[B, Q, 12, 16]`` and ``[B, Q, K + 1]``, leaves that want a gradient."""
    return [
        (
            (4 * torch.randn(images, queries, 12, 16)).requires_grad_(),
            torch.randn(images, queries, num_classes + 1).requires_grad_(),
        )
        for _ in range(predictions)
    ]
