"""KoLeo against NumPy, with all distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinov2_pretraining.losses import koleo_loss


def test_koleo_is_the_mean_log_distance_to_the_nearest_neighbour() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    rows = features.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    wanted = -np.log(distances.min(axis=1)).mean()
    assert float(koleo_loss(features)) == pytest.approx(wanted, rel=1e-5)


def test_a_step_down_the_gradient_spreads_the_features() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = koleo_loss(features)
    (gradient,) = torch.autograd.grad(before, features)
    assert koleo_loss(features - 0.01 * gradient) < before


def test_equal_features_have_finite_loss_and_gradient_and_one_has_none() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None and torch.isfinite(features.grad).all()
    assert float(koleo_loss(torch.ones(1, 3))) == 0.0
