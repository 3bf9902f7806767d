from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmseg_eomt.engine.hooks import MaskAnnealingHook, TrainingMonitorHook, role_rates
from mmseg_eomt.engine.hooks.training_log import StepRecord
from mmseg_eomt.engine.mixed_precision import NonFiniteError
from mmseg_eomt.engine.schedules import two_stage_factor
from tests.engine.engine_toys import logged, runner


def test_log_shows_the_rates_and_probabilities_of_its_step(tmp_path: Path) -> None:
    run = runner(tmp_path, steps=12, interval=1, warmup=(2, 3))
    run.train()
    annealing = MaskAnnealingHook()
    annealing.windows = annealing.resolve(2, 12)
    rates = {role: logged(tmp_path, f"lr_{role}") for role in ("head", "backbone")}
    masks = [logged(tmp_path, f"mask_prob_block{index}") for index in range(2)]
    for step in range(12):
        for role in rates:
            factor = two_stage_factor(role, step, 12, warmup=(2.0, 3.0), power=0.9)
            assert rates[role][step + 1] == pytest.approx(0.01 * factor)
        assert [mask[step + 1] for mask in masks] == pytest.approx(annealing.probabilities(step))
    # What the head used is what was logged.
    assert [probs for _, _, probs in run.model.decode_head.seen] == [
        annealing.probabilities(step) for step in range(12)
    ]
    assert logged(tmp_path, "lr") == {}  # mmengine's rate of group 0
    text = next(tmp_path.rglob("*.log")).read_text()
    assert "lr_head: 1.000e-02" in text
    assert "lr_backbone: 3.333e-03" in text


def test_losses_are_means_since_the_last_line(tmp_path: Path) -> None:
    each = runner(tmp_path / "each", steps=6, interval=1)
    each.train()
    third = runner(tmp_path / "third", steps=6, interval=3)
    third.train()
    for key in ("loss", "loss_mask", "grad_norm"):
        single = logged(tmp_path / "each", key)
        expected = {
            3: sum(single[i] for i in (1, 2, 3)) / 3,
            6: sum(single[i] for i in (4, 5, 6)) / 3,
        }
        assert logged(tmp_path / "third", key) == pytest.approx(expected, rel=1e-4)


def test_a_run_shorter_than_the_interval_still_logs(tmp_path: Path) -> None:
    runner(tmp_path, steps=2, interval=50).train()
    assert set(logged(tmp_path, "loss")) == {2}


def test_largest_rate_of_each_role() -> None:
    groups = [
        {"role": "backbone", "lr": 1e-6},
        {"role": "backbone", "lr": 1e-5},
        {"role": "head", "lr": 1e-4},
    ]
    assert role_rates(groups) == {"lr_head": 1e-4, "lr_backbone": 1e-5}
    assert role_rates([{"lr": 0.1}]) == {"lr_head": 0.1}


def test_record_names_the_first_bad_step_only_for_checked_names() -> None:
    def filled() -> StepRecord:
        record = StepRecord()
        for step in (7, 8, 9):
            norm = torch.tensor(float("inf") if step >= 8 else 1.0)
            record.add(step, {"loss": torch.tensor(2.0), "grad_norm": norm}, [f"{step}.png"])
        return record

    with pytest.raises(NonFiniteError, match=r"Step 9 gave .*8\.png"):
        filled().flush(must_be_finite=("loss", "grad_norm"))
    record = filled()
    assert record.flush(must_be_finite=("loss",))["loss"] == 2.0
    assert record.flush() == {}


def test_bad_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval is 0"):
        TrainingMonitorHook(interval=0)
