"""KoLeo: features spread evenly, by the distance of each to its nearest neighbour.

Shape legend: B images of this process, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, distributed

EPSILON = 1e-8  # facebookresearch/dinov2


def koleo_loss(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko estimator of entropy, negated (arXiv 1806.03198, as used in DINOv2).

    ``-mean(log(distance to the nearest neighbour))`` over normalised features. Neighbours are
    looked for in the batch of all processes, so that the loss does not depend on their number.

    Args:
        features (Tensor): ``[B, C]``.

    Returns:
        Tensor: Scalar, float32: the mean over the rows of this process. 0 if there is one row only.
    """
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(features.float(), dim=-1, eps=EPSILON)
        everyone = _gathered(own)
        if len(everyone) < 2:
            return own.sum() * 0.0
        first = get_rank() * len(own)
        with torch.no_grad():
            similar = own @ everyone.t()
            itself = torch.arange(len(own), device=own.device)
            similar[itself, itself + first] = -2.0  # below any cosine
            nearest = similar.argmax(dim=1)
        distances = (own - everyone[nearest] + EPSILON).norm(dim=-1)
        loss: Tensor = -(distances + EPSILON).log().mean()
        return loss


def _gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, in their order, with gradients that flow back to each."""
    if get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        ctx.own = slice(get_rank() * len(rows), (get_rank() + 1) * len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total[ctx.own]
