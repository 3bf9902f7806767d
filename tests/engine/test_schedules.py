from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from mmseg_eomt.engine.schedules import (
    SCALE_RULES,
    TwoStageWarmupPolyLR,
    lr_factor,
    resolve_steps,
    two_stage_factor,
)


def optimizer(lr: float = 1e-4) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [
        {"params": nn.Linear(1, 1).parameters(), "lr": lr, "role": "head"},
        {"params": nn.Linear(1, 1).parameters(), "lr": lr * 0.8, "role": "backbone"},
    ]
    return torch.optim.AdamW(groups)


def walk(total: int, steps: int, **kwargs: Any) -> list[tuple[float, float]]:
    """(head, backbone) rates at steps 0, 1, ... as a training run would see them."""
    optim = optimizer()
    scheduler = TwoStageWarmupPolyLR(optim, end=total, **kwargs)
    rates = []
    for _ in range(steps):
        rates.append((optim.param_groups[0]["lr"], optim.param_groups[1]["lr"]))
        optim.step()
        scheduler.step()
    return rates


def test_curve_of_the_ade20k_recipe() -> None:
    total, first, second = 39153, 500, 1000  # eomt.md section 2
    rates = walk(total, total, warmup=(first, second))
    for step in (0, 1, 250, 499, 500, 501, 1000, 1499, 1500, 1501, 20000, 39152):
        head, backbone = rates[step]
        if step < first:
            expected = 1e-4 * step / first
        else:
            expected = 1e-4 * (1 - (step - first) / (total - first)) ** 0.9
        assert head == pytest.approx(expected, rel=1e-9, abs=0)
        if step < first:
            assert backbone == 0.0
        elif step < first + second:
            assert backbone == pytest.approx(0.8e-4 * (step - first) / second, rel=1e-9, abs=0)
        else:
            left = 1 - (step - first - second) / (total - first - second)
            assert backbone == pytest.approx(0.8e-4 * left**0.9, rel=1e-9, abs=0)
    assert rates[500][0] == pytest.approx(1e-4)
    assert rates[1500][1] == pytest.approx(0.8e-4)
    assert rates[-1][0] < 1e-8


def test_a_run_of_100_steps_reaches_full_rates() -> None:
    rates = walk(100, 100)  # shares: 1 and 2 (rounded) steps
    assert max(head for head, _ in rates) == pytest.approx(1e-4)
    assert max(backbone for _, backbone in rates) == pytest.approx(0.8e-4)
    assert sum(backbone for _, backbone in rates) > 0.8e-4 * 50
    assert 0 < rates[-1][0] < 3e-6


def test_shares_scale_with_the_run() -> None:
    short, long = optimizer(), optimizer()
    a = TwoStageWarmupPolyLR(short, end=400, warmup=(0.1, 0.2))
    b = TwoStageWarmupPolyLR(long, end=40000, warmup=(0.1, 0.2))
    assert a.warmup == (40.0, 80.0)
    for step in (0, 10, 40, 77, 120, 300, 400):
        assert a.rates(step) == pytest.approx(b.rates(100 * step))


@pytest.mark.parametrize("total", [1, 2, 500, 1499, 1500, 1501])
def test_runs_shorter_than_the_warm_up_stay_real(total: int) -> None:
    for step in range(0, 2 * total + 3):
        for role in ("head", "backbone"):
            factor = two_stage_factor(role, step, total, warmup=(500.0, 1000.0), power=0.9)
            assert isinstance(factor, float)
            assert 0.0 <= factor <= 1.0


def test_a_warm_up_longer_than_the_run_warns(caplog: pytest.LogCaptureFixture) -> None:
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance("two_stage")
    logger.addHandler(caplog.handler)
    TwoStageWarmupPolyLR(optimizer(), end=100, warmup=(500, 1000))
    logger.removeHandler(caplog.handler)
    assert any(
        record.levelno == logging.WARNING and "1500 of 100 steps" in record.getMessage()
        for record in caplog.records
    )


def test_resume_continues_the_curve_exactly() -> None:
    whole = walk(60, 60, warmup=(5, 10))
    optim = optimizer()
    scheduler = TwoStageWarmupPolyLR(optim, end=60, warmup=(5, 10))
    for _ in range(23):
        optim.step()
        scheduler.step()
    saved, state = scheduler.state_dict(), optim.state_dict()
    optim = optimizer()
    scheduler = TwoStageWarmupPolyLR(optim, end=60, warmup=(5, 10))
    optim.load_state_dict(state)
    scheduler.load_state_dict(saved)
    for step in range(23, 60):
        assert [group["lr"] for group in optim.param_groups] == list(whole[step])
        optim.step()
        scheduler.step()


@pytest.mark.parametrize("total", [20, 30, 200])
def test_resume_with_another_length_follows_the_new_run(total: int) -> None:
    optim = optimizer()
    scheduler = TwoStageWarmupPolyLR(optim, end=60)
    for _ in range(31):
        optim.step()
        scheduler.step()
    saved, state = scheduler.state_dict(), optim.state_dict()
    optim = optimizer(lr=2e-4)  # a changed rate counts too
    scheduler = TwoStageWarmupPolyLR(optim, end=total)
    optim.load_state_dict(state)
    scheduler.load_state_dict(saved)
    fresh = TwoStageWarmupPolyLR(optimizer(lr=2e-4), end=total)
    for step in range(31, 70):
        assert [group["lr"] for group in optim.param_groups] == fresh.rates(step)
        optim.step()
        scheduler.step()


def test_groups_without_role_are_refused() -> None:
    plain = torch.optim.AdamW(nn.Linear(1, 1).parameters())
    with pytest.raises(ValueError, match="LayerDecayOptimWrapperConstructor"):
        TwoStageWarmupPolyLR(plain, end=10)


def test_works_under_mmengines_own_wrapper() -> None:
    from mmengine.optim import OptimWrapper

    wrapped = OptimWrapper(optimizer())  # has one pseudo group more
    scheduler = TwoStageWarmupPolyLR(wrapped, end=10, warmup=(2, 2))
    wrapped.step()
    scheduler.step()
    assert [group["lr"] for group in wrapped.optimizer.param_groups] == [0.5e-4, 0.0]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"warmup": (0.1,)}, "two numbers"),
        ({"warmup": (500.0, 0.1)}, "share of the run"),
        ({"warmup": (-1, 2)}, "must not be negative"),
        ({"warmup": (True, 2)}, "True"),
        ({"by_epoch": True}, "by_epoch"),
        ({"power": 0.0}, "power"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TwoStageWarmupPolyLR(optimizer(), end=100, **kwargs)


def test_floats_are_shares_and_ints_are_steps() -> None:
    assert resolve_steps(0.25, 1000, name="x") == 250.0
    assert resolve_steps(1, 1000, name="x") == 1.0
    assert resolve_steps(1.0, 1000, name="x") == 1000.0


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ({"enable": True, "base_batch_size": 16, "rule": "square"}, "rule is 'square'.*'sqrt'"),
        ({"enable": True}, "base_batch_size is None"),
        ({"enable": True, "base_batch_size": 0}, "base_batch_size is 0"),
    ],
)
def test_a_wrong_scaling_of_rates_is_said_by_dry_run_and_run_alike(
    scale: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        lr_factor(scale, 32)


def test_rates_follow_the_global_batch_by_the_rule() -> None:
    assert lr_factor(None, 64) == lr_factor({"base_batch_size": 16}, 64) == 1.0
    scale = {"enable": True, "base_batch_size": 16}
    assert [lr_factor({**scale, "rule": rule}, 64) for rule in SCALE_RULES] == [2.0, 4.0, 1.0]
