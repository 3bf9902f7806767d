"""N steps equal k steps, a crash, a resume and N - k steps: bit by bit, in all that is stored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.engine_toys import ToySegmentor, logged
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


# Before step 5 the checkpoint is that of step 3, and of step 6 before step 8.
@pytest.mark.parametrize(("case", "crash"), [("plain", 4), *((case, 7) for case in CASES)])
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


@pytest.mark.slow  # two more processes import everything
def test_two_processes_resume_exactly_and_one_may_take_over(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=29641", str(Path(__file__).with_name("gloo_resume.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last = f"iter_{STEPS}.pth"
    assert compare(tmp_path / "whole" / last, tmp_path / "parts" / last) == []
    states = torch.load(tmp_path / "whole" / last, weights_only=True)["processes"]
    assert len(states) == 2
    assert not torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    assert logged(tmp_path / "parts", "loss") == logged(tmp_path / "whole", "loss")

    # One process goes on where two stopped: the same images, so the run of one up to rounding.
    options: dict[str, Any] = {"steps": STEPS, "batch_size": 1, "interval": 5}
    options["hooks"] = [{"type": "EMAHook", "momentum": 0.1}]
    alone = exact_runner(tmp_path / "alone", model=ToySegmentor(), **options)
    alone.train()
    over = exact_runner(tmp_path / "handed", model=ToySegmentor(), resume=True, **options)
    over.train()
    for mine, theirs in zip(over.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    losses = logged(tmp_path / "alone", "loss")
    assert logged(tmp_path / "handed", "loss") == pytest.approx(losses, rel=1e-4)
