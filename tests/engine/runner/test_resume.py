"""N steps equal k steps, a crash, a resume and N - k steps: bit by bit, in all that is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.engine_toys import logged
from tests.engine.exact import Crash, compare, exact_runner

STEPS = 8
FP16 = {"precision": "fp16", "loss_scale": {"init_scale": 8.0, "growth_interval": 3}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged weights": {"hooks": [{"type": "EMAHook", "momentum": 0.1}]},
    "averaged every second step": {"hooks": [{"type": "EMAHook", "interval": 2, "begin_iter": 2}]},
    "two workers": {"workers": 2},
    "one batch a step": {"batch_size": 4},
    "loss scaling": {"optim": FP16},
    "steps between log lines": {"interval": 5},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("crash", [4, 7])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, case: str, crash: int) -> None:
    options = CASES[case]
    exact_runner(tmp_path / "whole", steps=STEPS, **options).train()
    with pytest.raises(Crash):
        exact_runner(tmp_path / "parts", steps=STEPS, crash=crash, **options).train()
    again = exact_runner(tmp_path / "parts", steps=STEPS, resume=True, **options)
    torch.manual_seed(99)  # whatever the new process drew
    again.train()
    # Weights, averages, optimiser, scaler, schedule, scores, log history and generators.
    last = f"iter_{STEPS}.pth"
    assert compare(tmp_path / "whole" / last, tmp_path / "parts" / last) == []
    for key in ("loss", "grad_norm", "lr_head", "mask_prob_block0", "mIoU"):
        expected = logged(tmp_path / "whole", key)
        assert expected and logged(tmp_path / "parts", key) == expected
    best = {path.name for path in (tmp_path / "whole").glob("best_*.pth")}
    assert len(best) == 1 and {p.name for p in (tmp_path / "parts").glob("best_*.pth")} == best
