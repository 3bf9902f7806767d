"""torchrun starts a run again that lost a process, and nobody can tell afterwards."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_eomt.apis.processes import agree_on_resume
from tests.apis.tiny import make_data
from tests.checkpoints.test_sharded import assert_bit_equal
from tests.engine.elastic.agent import STEPS, Agent, after, differences, in_a_write
from tests.ranks import run_ranks

WRITE = True


def assert_same_run(calm: Path, struck: Path) -> None:
    """Weights, averages, optimiser, generators, log history and files."""
    last = f"iter_{STEPS}.pth"
    assert differences(calm / last, struck / last) == []
    names = [sorted(path.name for path in run.glob("*.pth")) for run in (calm, struck)]
    assert names[0] == names[1]
    assert [name for name in os.listdir(struck) if name.endswith(".tmp")] == []


def test_a_run_whose_processes_are_killed_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    plan = [(0, 0, 6, WRITE), (1, 1, 7, not WRITE)]
    calm = Agent(tmp_path / "calm", max_restarts=1)
    struck = Agent(tmp_path / "struck", options={"fate": {"plan": plan}}, max_restarts=2)
    for run in (calm, struck):
        run.finish()
    assert_same_run(calm.folder, struck.folder)
    log = struck.log.read_text()
    # The checkpoint that had no name yet is written again.
    assert "iter_4.pth after step 4" in log and "iter_6.pth after step 6" in log


@pytest.mark.slow
def test_runs_survive_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(3)
    calm = Agent(tmp_path / "calm", max_restarts=1)
    calm.finish()
    kills = runs = 0
    while kills < 20:
        runs += 1
        run = Agent(tmp_path / f"run{runs}", max_restarts=5)
        for life in range(5):
            write = chance.random() < 0.4
            moment = in_a_write(run.folder) if write else after(chance.uniform(0.0, 1.5))
            if not run.kill(life=life, rank=chance.randrange(2), when=moment):
                break
            kills += 1
        run.finish()
        assert_same_run(calm.folder, run.folder)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_shards_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=8)
    plan = [(0, 0, 6, WRITE), (1, 1, 9, not WRITE), (2, 0, 10, WRITE)]
    calm = Agent(tmp_path / "calm", task="train_sharded", options={"data": data}, max_restarts=1)
    options = {"data": data, "fate": {"plan": plan}}
    struck = Agent(tmp_path / "struck", task="train_sharded", options=options, max_restarts=3)
    for run in (calm, struck):
        run.finish()
    log = struck.log.read_text()
    assert "iter_4.sharded after step 4" in log and log.count("iter_8.sharded after step 8") == 2
    last = f"iter_{STEPS}.sharded"
    assert_bit_equal(calm.folder / last, struck.folder / last)
    assert [name for name in os.listdir(struck.folder) if name.endswith(".tmp")] == []


def test_the_processes_of_a_start_agree_whether_it_continues_a_run(tmp_path: Path) -> None:
    run_ranks(2, "tests.engine.elastic.agent:agree", str(tmp_path), log=tmp_path / "log")


def test_starts_that_a_restart_could_not_follow_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = Config({"launcher": "pytorch", "work_dir": "run"})
    assert agree_on_resume(cfg, "a.pth") == "a.pth"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match="give --resume alone"):
        agree_on_resume(cfg, "a.pth")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/dev/null")
    with pytest.raises(ValueError, match="leave --log-dir /dev/null out"):
        agree_on_resume(cfg, False)
