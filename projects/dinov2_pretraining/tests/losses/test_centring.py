"""Centring against NumPy: the moving mean of logits, and Sinkhorn-Knopp on the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dinov2_pretraining.losses import Centre, sinkhorn_bias

R, D, K = 12, 6, 9


def unit(*shape: int, seed: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def test_centre_is_the_moving_mean_of_logits_of_earlier_steps() -> None:
    prototypes = unit(K, D, seed=0)
    centre, wanted = Centre(K, dims=D, momentum=0.9), np.zeros(K)
    for step in range(4):
        np.testing.assert_allclose(centre.bias(0.05).numpy(), -wanted / 0.05, rtol=1e-4, atol=1e-6)
        rows = unit(R + step, D, seed=step + 1)
        for part in rows.split(5):  # micro-batches of unequal size
            centre.see(part)
        centre.update(prototypes)
        logits = rows.double().numpy() @ prototypes.double().numpy().T
        wanted = 0.9 * wanted + 0.1 * logits.mean(axis=0)
    np.testing.assert_allclose(centre.centre.numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_a_step_without_a_row_leaves_the_centre() -> None:
    centre = Centre(K, dims=D)
    centre.see(unit(R, D, seed=1))
    centre.update(unit(K, D, seed=0))
    before = centre.centre.clone()
    centre.update(unit(K, D, seed=0))
    assert torch.equal(centre.centre, before) and before.any()


def sinkhorn(logits: np.ndarray, temp: float, iterations: int) -> np.ndarray:
    """Rows and columns of exp(logits / temp) in turns (arXiv 2006.09882, appendix)."""
    q = np.exp(logits / temp).T  # [K, R]
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= q.shape[0]
        q /= q.sum(axis=0, keepdims=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 3, 8])
@pytest.mark.parametrize("logits_at_once", [1, 5 * K, 10**6])
def test_softmax_with_the_bias_is_sinkhorn_knopp(iterations: int, logits_at_once: int) -> None:
    rows, prototypes = unit(R, D, seed=1), unit(K, D, seed=0)
    bias = sinkhorn_bias(
        rows, prototypes, temp=0.05, iterations=iterations, logits_at_once=logits_at_once
    )
    found = (rows @ prototypes.t() / 0.05 + bias).softmax(-1).double().numpy()
    wanted = sinkhorn(rows.double().numpy() @ prototypes.double().numpy().T, 0.05, iterations)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-7)


def test_sinkhorn_stays_finite_where_no_row_is_near_a_prototype_or_there_is_no_row() -> None:
    prototypes = torch.cat((unit(2, D, seed=0), -unit(2, D, seed=0)))
    near = prototypes[:1].expand(5, D)
    bias = sinkhorn_bias(near, prototypes, temp=0.002)  # exp(-1000) is 0 in float32
    assert torch.isfinite(bias).all()
    assert torch.isfinite(sinkhorn_bias(near[:0], prototypes, temp=0.05)).all()
