"""The cross-entropy over prototypes against NumPy, and against itself in other chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinov2_pretraining.losses import prototype_loss

S, T, R, D, K = 5, 2, 7, 6, 11


def unit(*shape: int, seed: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "student": unit(S, R, D, seed=0),
        "teacher": unit(T, R, D, seed=1),
        "student_prototypes": unit(K, D, seed=2),
        "teacher_prototypes": unit(K, D, seed=3),
        "teacher_bias": torch.randn(K, generator=generator),
        "pairs": torch.rand(S, T, generator=generator),
        "row_weights": torch.rand(R, generator=generator),
        "student_temp": 0.1,
        "teacher_temp": 0.05,
    }


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_definition(values: dict[str, Any]) -> tuple[float, float]:
    """Loss and entropy, pair by pair in float64."""
    v = {n: x.double().numpy() if isinstance(x, Tensor) else x for n, x in values.items()}
    q = softmax(v["student"] @ v["student_prototypes"].T / v["student_temp"])
    p = softmax(v["teacher"] @ v["teacher_prototypes"].T / v["teacher_temp"] + v["teacher_bias"])
    loss = 0.0
    for s in range(S):
        for t in range(T):
            for r in range(R):
                entropy = -(p[t, r] * np.log(q[s, r])).sum()
                loss += v["row_weights"][r] * v["pairs"][s, t] * entropy
    return loss, float(-(p * np.log(p)).sum(-1).mean())


@pytest.mark.parametrize("logits_at_once", [1, 3 * S * K, 10**6])
def test_loss_and_entropy_are_those_of_the_definition(logits_at_once: int) -> None:
    values = inputs()
    found = prototype_loss(**values, logits_at_once=logits_at_once)
    loss, entropy = by_definition(values)
    assert float(found.loss) == pytest.approx(loss, rel=1e-5)
    assert float(found.entropy) == pytest.approx(entropy, rel=1e-5)


def gradients(logits_at_once: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    values = inputs()
    leaves = [values[name].to(dtype).requires_grad_() for name in ("student", "student_prototypes")]
    values["student"], values["student_prototypes"] = leaves
    (3.0 * prototype_loss(**values, logits_at_once=logits_at_once).loss).backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == dtype for leaf in leaves)
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_gradients_are_those_of_autograd() -> None:
    values = inputs()
    student = values["student"].double().requires_grad_()
    prototypes = values["student_prototypes"].double().requires_grad_()
    log_q = (student @ prototypes.t() / 0.1).log_softmax(-1)
    logits = values["teacher"].double() @ values["teacher_prototypes"].double().t() / 0.05
    p = (logits + values["teacher_bias"].double()).softmax(-1)
    cross = -torch.einsum("trk,srk->str", p, log_q)
    (
        3.0
        * torch.einsum(
            "str,st,r->", cross, values["pairs"].double(), values["row_weights"].double()
        )
    ).backward()
    for wanted, found in zip((student.grad, prototypes.grad), gradients(10**6), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_chunks_change_nothing_but_rounding() -> None:
    whole = gradients(10**6)
    for rows in (1, 2, 3):
        for one, other in zip(whole, gradients(rows * S * K), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_no_row_gives_zero_loss_and_zero_gradients() -> None:
    values = {**inputs(), "student": unit(1, 0, D, seed=0), "teacher": unit(1, 0, D, seed=0)}
    values.update(pairs=torch.ones(1, 1), row_weights=torch.zeros(0))
    prototypes = values["student_prototypes"].requires_grad_()
    found = prototype_loss(**values)
    found.loss.backward()
    assert float(found.loss) == 0.0 and float(found.entropy) == 0.0
    assert prototypes.grad is not None and not prototypes.grad.any()


def test_65536_prototypes_keep_no_matrix_of_rows_times_prototypes() -> None:
    """64 rows of 65,536 prototypes are 16 MiB; what stays for the backward pass is 1 / 30 of it."""
    prototypes = torch.randn(65536, 2).requires_grad_()
    rows = torch.randn(1, 64, 2).requires_grad_()
    kept: list[int] = []
    values = {
        "teacher": unit(1, 64, 2, seed=1),
        "teacher_prototypes": unit(65536, 2, seed=2),
        "teacher_bias": torch.zeros(65536),
        "pairs": torch.ones(1, 1),
        "row_weights": torch.ones(64),
        "student_temp": 0.1,
        "teacher_temp": 0.05,
    }

    def keep(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        found = prototype_loss(rows, student_prototypes=prototypes, **values)
    assert sum(kept) <= 65536 * 2 + 64 * 2 + 64
    found.loss.backward()
