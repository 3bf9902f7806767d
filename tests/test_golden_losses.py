"""30 steps from a fixed seed give the losses that were committed; two processes give them too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import golden

ROOT = Path(__file__).parents[1]
# What other kernels, threads and package versions may change by rounding alone, at most: a first
# step has one forward pass of it, and Adam carries it on.
FIRST, ALL = 2e-5, 2e-3


def _assert_golden(losses: list[float]) -> None:
    expected = golden.committed_losses()
    assert len(losses) == len(expected) == golden.STEPS
    np.testing.assert_allclose(losses[0], expected[0], rtol=FIRST)
    np.testing.assert_allclose(losses, expected, rtol=ALL)


def test_losses_of_thirty_steps_are_the_committed_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    _run(command)
    losses = golden.read_losses(tmp_path / "run")
    _assert_golden(losses)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), "it does not learn"


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """The same global batch spread over two processes, through tools/dist_train.sh."""
    config, data = golden.golden_config(tmp_path)
    run = tmp_path / "run"
    command = ["bash", "tools/dist_train.sh", str(config), "2"]
    _run([*command, "--data", str(data), "--work-dir", str(run)])
    _assert_golden(golden.read_losses(run))


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path: Path) -> None:
    config, data = golden.golden_config(tmp_path)
    run = tmp_path / "run"
    command = [sys.executable, "tools/train.py", str(config), "--data", str(data)]
    _run([*command, "--work-dir", str(run), "--cfg-options", "compile=True"])
    _assert_golden(golden.read_losses(run))
    assert "Blocks are compiled" in next(run.glob("*/*.log")).read_text()


def _run(command: list[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PORT": "29611"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )
    if done.returncode:
        pytest.fail(
            f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-5000:]}"
        )
