from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook

from mmseg_eomt.engine.hooks import TrainingMonitorHook
from tests.engine.engine_toys import logged, runner

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("rule", "factor"), [("sqrt", 0.5), ("linear", 0.25), ("none", 1.0), (None, 0.5)]
)
def test_rates_follow_the_global_batch(tmp_path: Path, rule: str | None, factor: float) -> None:
    scale: dict[str, Any] = {"enable": True, "base_batch_size": 16}
    if rule:
        scale["rule"] = rule
    # Two micro-batches of two: it is the global batch of 4 that counts.
    run = runner(tmp_path, steps=3, batch_size=2, auto_scale_lr=scale, interval=1)
    run.train()
    groups = run.optim_wrapper.optimizer.param_groups
    head = next(group for group in groups if group["role"] == "head")
    assert head["initial_lr"] == pytest.approx(0.01 * factor)
    assert max(logged(tmp_path, "lr_head").values()) == pytest.approx(0.01 * factor)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"enable": True, "base_batch_size": 16, "rule": "cubic"}, "'cubic'"),
        ({"enable": True}, "base_batch_size is None"),
    ],
)
def test_bad_scaling_is_refused(tmp_path: Path, scale: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runner(tmp_path, auto_scale_lr=scale).train()


@pytest.mark.parametrize("listed", [False, True])
def test_exactly_one_hook_logs_rates(tmp_path: Path, listed: bool) -> None:
    run = runner(tmp_path, hooks=[{"type": "TrainingMonitorHook"}] if listed else [])
    loggers = [hook for hook in run.hooks if isinstance(hook, RuntimeInfoHook)]
    assert [type(hook) for hook in loggers] == [TrainingMonitorHook]


def test_a_config_inside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    first = runner(tmp_path, steps=3)
    first.train()
    path = tmp_path / "iter_3.pth"
    checkpoint = torch.load(path, weights_only=False)  # our own file of a moment ago
    trap = tmp_path / "ran"
    checkpoint["meta"]["config"] = f"open({str(trap)!r}, 'w').close()"
    torch.save(checkpoint, path)
    runner(tmp_path, steps=4, resume=True).train()
    assert not trap.exists()


def test_cpu_launchers_without_their_variables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("concerns machines without CUDA")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        runner(tmp_path, launcher="pytorch")
    with pytest.raises(ValueError, match=r"SLURM_PROCID.*slurm_train"):
        runner(tmp_path, launcher="slurm")
    with pytest.raises(ValueError, match="launcher mpi needs CUDA"):
        runner(tmp_path, launcher="mpi")


@pytest.mark.slow  # two more processes import everything
def test_two_gloo_processes_train_like_one(tmp_path: Path) -> None:
    one = runner(tmp_path / "one", steps=4, global_batch_size=4, batch_size=2)
    one.train()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=29637", str(HERE / "gloo_process.py"), str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(HERE.parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    mine = torch.cat([p.detach().flatten() for p in one.model.parameters()])
    torch.testing.assert_close(torch.tensor(result["weights"]), mine, rtol=1e-5, atol=1e-7)
    assert logged(tmp_path / "two", "loss") == pytest.approx(
        logged(tmp_path / "one", "loss"), rel=1e-5
    )
    # Gradients are exchanged once a step, not at each of its two micro-batches.
    assert result["exchanges_per_step"] == [1, 1, 1, 1]
