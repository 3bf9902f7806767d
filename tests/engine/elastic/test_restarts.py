"""torchrun starts a run again that lost a process, and nobody can tell afterwards."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_eomt.apis.restart import agree_on_resume
from tests.engine.elastic.agent import STEPS, Agent, after, in_a_write
from tests.engine.exact import compare
from tests.ranks import run_ranks


def assert_same_run(calm: Path, struck: Path) -> None:
    """Weights, averages, optimiser, generators, log history and files."""
    last = f"iter_{STEPS}.pth"
    assert compare(calm / last, struck / last) == []
    names = [sorted(path.name for path in run.glob("*.pth")) for run in (calm, struck)]
    assert names[0] == names[1]
    assert [name for name in os.listdir(struck) if name.endswith(".tmp")] == []


def test_a_run_whose_processes_are_killed_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    calm, struck = Agent(tmp_path / "calm", restarts=1), Agent(tmp_path / "struck", restarts=2)
    folder = struck.folder
    assert struck.kill(life=0, rank=0, when=in_a_write(folder, "6"))
    assert struck.kill(life=1, rank=1, when=(folder / "iter_8.pth").exists)
    for run in (calm, struck):
        run.finish()
    assert_same_run(calm.folder, folder)
    log = struck.log.read_text()
    assert log.count("terminated with signal SIGKILL") == 2
    assert "iter_4.pth after step 4" in log and "iter_8.pth after step 8" in log


@pytest.mark.slow
def test_runs_survive_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(3)
    calm = Agent(tmp_path / "calm", restarts=1)
    calm.finish()
    kills = runs = 0
    while kills < 20:
        runs += 1
        run = Agent(tmp_path / f"run{runs}", restarts=5)
        for life in range(5):
            write = chance.random() < 0.4
            moment = in_a_write(run.folder) if write else after(chance.uniform(0.0, 1.5))
            if not run.kill(life=life, rank=chance.randrange(2), when=moment):
                break
            kills += 1
        run.finish()
        assert_same_run(calm.folder, run.folder)


def test_the_processes_of_a_start_agree_whether_it_continues_a_run(tmp_path: Path) -> None:
    run_ranks(2, "tests.engine.elastic.agent:agree", str(tmp_path), log=tmp_path / "log")


def test_a_checkpoint_that_a_restart_could_not_go_past_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = Config({"launcher": "pytorch", "work_dir": "run"})
    assert agree_on_resume(cfg, "a.pth") == "a.pth"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match="give --resume alone"):
        agree_on_resume(cfg, "a.pth")
