"""Random numbers keyed by step."""

from __future__ import annotations

import torch

from mmseg_eomt.models.step import StepRandom


def test_numbers_depend_on_seed_step_and_purpose_and_on_nothing_else() -> None:
    first = StepRandom(seed=1, step=2).uniform("points", 100)
    torch.rand(7)  # the global generator has no say
    assert torch.equal(first, StepRandom(seed=1, step=2).uniform("points", 100))
    for other in (
        StepRandom(seed=2, step=2).uniform("points", 100),
        StepRandom(seed=1, step=3).uniform("points", 100),
        StepRandom(seed=1, step=2).uniform("draws", 100),
    ):
        assert not torch.equal(first, other)


def test_numbers_are_uniform_over_steps() -> None:
    numbers = torch.cat([StepRandom(seed=0, step=s).uniform("x", 50) for s in range(200)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
