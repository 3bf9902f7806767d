"""Classification by the nearest neighbours in feature space.

Shape legend: R training rows, F test rows, C channels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 1024  # compared at a time


def neighbours_vote(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    num_classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """The class that the nearest neighbours agree on.

    Features are normalised; each of the most similar training rows votes for its class with
    ``exp(cosine / temperature)``. Of equal votes the first class counts.

    Source: Wu et al., arXiv 1805.01978, section 3.4; k and temperature as in DINO and DINOv2
    (facebookresearch/dinov2 @05c66df, eval/knn.py: "20 is usually working the best").

    Args:
        train (Tensor): ``[R, C]``.
        labels (Tensor): Classes ``[R]`` of the training rows.
        test (Tensor): ``[F, C]``.
        num_classes (int): K.
        neighbours (int): How many vote; all if there are fewer. Defaults to 20.
        temperature (float): Defaults to 0.07.

    Returns:
        Tensor: Classes ``[F]``.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    count = min(neighbours, len(train))
    chosen = []
    for start in range(0, len(test), _ROWS):
        rows = test[start : start + _ROWS]
        closest, index = (rows @ train.T).topk(count, dim=1)
        # Less the largest, so that nothing overflows.
        weights = ((closest - closest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(rows), num_classes, dtype=weights.dtype, device=weights.device)
        chosen.append(votes.scatter_add_(1, labels[index], weights).argmax(dim=1))
    return torch.cat(chosen)
