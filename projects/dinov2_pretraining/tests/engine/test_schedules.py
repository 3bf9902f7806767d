"""Schedules against NumPy tables as the published training code lays them out."""

from __future__ import annotations

import numpy as np
import pytest

from dinov2_pretraining.engine.schedules import LinearRise, WarmupCosine


def table(
    peak: float, end: float, total: int, *, warmup: int = 0, start: float = 0.0, hold: int = 0
) -> np.ndarray:
    """Zeros, an even rise with both ends, half a cosine over what is left."""
    steps = np.arange(total - warmup - hold)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate((np.zeros(hold), np.linspace(start, peak, warmup), cosine))


@pytest.mark.parametrize("total", [40, 125_000])
def test_learning_rate_momentum_and_weight_decay_follow_the_published_tables(total: int) -> None:
    cases = [
        (WarmupCosine(peak=0.004, end=1e-6, warmup=0.1), {"warmup": total // 10}),
        (WarmupCosine(peak=0.992, end=1.0), {}),
        (WarmupCosine(peak=0.04, end=0.4), {}),
        (
            WarmupCosine(peak=0.004, end=1e-6, warmup=0.1, hold=0.05),
            {"warmup": total // 10, "hold": total // 20},
        ),
        (WarmupCosine(peak=1.0, end=0.1, start=0.5, warmup=7), {"warmup": 7, "start": 0.5}),
    ]
    for schedule, options in cases:
        wanted = table(schedule.peak, schedule.end, total, **options)
        steps = np.unique(np.linspace(0, total - 1, 200).astype(int))
        found = [schedule.at(int(step), total) for step in steps]
        np.testing.assert_allclose(found, wanted[steps], rtol=1e-12, atol=1e-15)


def test_teacher_temperature_rises_over_30_of_100_epochs_as_published() -> None:
    schedule, total = LinearRise(start=0.04, end=0.07, length=0.3), 125_000
    wanted = np.concatenate((np.linspace(0.04, 0.07, 37_500), np.full(total - 37_500, 0.07)))
    for step in (0, 1, 20_000, 37_499, 37_500, 124_999):
        assert schedule.at(step, total) == pytest.approx(wanted[step], rel=1e-12)


def test_runs_shorter_than_their_warmup_and_beyond_their_end_have_values() -> None:
    schedule = WarmupCosine(peak=2.0, end=1.0, warmup=10)
    assert [schedule.at(step, 3) for step in range(3)] == [
        0.0,
        pytest.approx(2 / 9),
        pytest.approx(4 / 9),
    ]
    assert WarmupCosine(peak=2.0, end=1.0).at(30, 20) == 1.0
    assert WarmupCosine(peak=2.0, end=1.0, warmup=1).at(0, 1) == 2.0
    assert LinearRise(start=0.0, end=1.0, length=1).at(0, 9) == 1.0
