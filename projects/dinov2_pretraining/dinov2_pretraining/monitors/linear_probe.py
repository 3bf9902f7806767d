"""A linear classifier on frozen features.

Shape legend: R training rows, F test rows, C channels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 500


def fit_linear(
    train: Tensor, labels: Tensor, *, num_classes: int, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, solved to its minimum by L-BFGS.

    Minimises ``sum of cross-entropies + |weights|^2 / (2 * strength)``, the bias without penalty,
    as scikit-learn's LogisticRegression with ``C=strength`` does.

    Args:
        train (Tensor): ``[R, C]``.
        labels (Tensor): Classes ``[R]``.
        num_classes (int): K.
        strength (float): Of the data against the penalty. Defaults to 1.

    Returns:
        tuple[Tensor, Tensor]: Weights ``[K, C]`` and bias ``[K]``, float64.
    """
    rows = train.detach().double()
    weights = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
    bias = torch.zeros(num_classes, dtype=rows.dtype, device=rows.device)
    parameters = [weights.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=_STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(rows, weights, bias), labels)
        loss = loss + weights.square().sum() / (2 * strength * len(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return weights.detach(), bias.detach()


def linear_vote(train: Tensor, labels: Tensor, test: Tensor, *, num_classes: int) -> Tensor:
    """Classes ``[F]`` of ``test [F, C]`` by `fit_linear` on ``train [R, C]``.

    Channels are standardised by the training rows.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, unbiased=False)
    std = torch.where(std > 0, std, torch.ones_like(std))
    weights, bias = fit_linear((train - mean) / std, labels, num_classes=num_classes)
    return F.linear(((test - mean) / std).double(), weights, bias).argmax(dim=1)
