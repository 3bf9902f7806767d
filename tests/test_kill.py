"""A run that is killed again and again, writes included, ends as one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from mmseg_eomt.checkpoints.run_folder import checkpoints_of, newest_intact
from mmseg_eomt.checkpoints.torch_file import verify
from tests.engine.exact import compare
from tests.kill_trainer import STEPS, train_to_the_end

# A clean process imports everything once, and each run is a fork of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.kill_trainer"])
LIMIT = 240.0
AIMS = ("any moment", "iter_", "between writes", "best_", "any moment", "last_checkpoint")


def start(folder: Path) -> multiprocessing.context.ForkServerProcess:
    process = FORKS.Process(target=train_to_the_end, args=(str(folder),))
    process.start()
    return process


def finish(folder: Path) -> float:
    """Lets a run come to its end; returns the seconds that its training took."""
    process = start(folder)
    process.join(LIMIT)
    assert process.exitcode == 0, (folder / "output.txt").read_text()[-3000:]
    return float((folder / "seconds.txt").read_text())


def half_written(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def kill(folder: Path, *, aim: str, moment: float) -> str | None:
    """Starts a run and kills it; returns when, or None if it ended before.

    Args:
        folder: Of the run.
        aim: 'any moment', 'between writes', or the file in whose write it is killed.
        moment: Seconds after its start; with an aim it is the first such write after that.
    """
    folder.mkdir(exist_ok=True)
    process = start(folder)
    began = time.monotonic()
    while process.is_alive() and time.monotonic() - began < LIMIT:
        if time.monotonic() - began < moment:
            time.sleep(0.001)
        elif _is_now(aim, half_written(folder)):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.join(LIMIT)
    if process.exitcode == 0:
        return None
    assert process.exitcode == -signal.SIGKILL, (folder / "output.txt").read_text()[-3000:]
    return "inside a write" if half_written(folder) else "between writes"


def _is_now(aim: str, writing: list[str]) -> bool:
    if aim == "between writes":
        return not writing
    return aim == "any moment" or any(name.startswith(f".{aim}") for name in writing)


def assert_loadable(folder: Path, *, had_one: bool) -> bool:
    """Every checkpoint is whole, and what has existed once has a successor."""
    found = checkpoints_of(folder)
    assert all(verify(path) for path in [*found.values(), *folder.glob("best_*.pth")])
    assert newest_intact(folder) == (list(found.values())[-1] if found else None)
    assert found or not had_one
    return bool(found)


def survive(tmp_path: Path, *, kills: int, seed: int) -> Counter[str]:
    """Kills runs until there were that many kills; each run must end like the undisturbed one."""
    chance = random.Random(seed)
    whole = tmp_path / "whole"
    seconds = finish(whole)
    hit: Counter[str] = Counter()
    life = 0
    while hit.total() < kills:
        life += 1
        folder, had_one = tmp_path / f"life{life}", False
        for attempt in range(8):
            if hit.total() >= kills:
                break
            aim = AIMS[(life + attempt) % len(AIMS)]
            when = kill(folder, aim=aim, moment=chance.uniform(0.0, 1.0) * seconds)
            if when is None:
                break
            hit[when] += 1
            had_one = assert_loadable(folder, had_one=had_one)
        finish(folder)
        last = f"iter_{STEPS}.pth"
        assert compare(whole / last, folder / last) == []
        for pattern in ("best_*.pth", "iter_*"):
            names = {path.name for path in whole.glob(pattern)}
            assert names and {path.name for path in folder.glob(pattern)} == names
        (best,) = whole.glob("best_*.pth")
        weights = [torch.load(run / best.name, weights_only=True) for run in (whole, folder)]
        assert all(
            torch.equal(value, weights[1]["state_dict"][name])
            for name, value in weights[0]["state_dict"].items()
        )
        assert (folder / "last_checkpoint").read_text() == last
        assert half_written(folder) == []
    return hit


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    hit = survive(tmp_path, kills=4, seed=1)
    assert hit.total() == 4


@pytest.mark.slow
def test_a_run_survives_thirty_kills(tmp_path: Path) -> None:
    hit = survive(tmp_path, kills=30, seed=2)
    assert hit.total() == 30 and min(hit["inside a write"], hit["between writes"]) >= 3, hit
