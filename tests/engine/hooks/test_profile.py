"""A profile has the steps that were asked for, under their numbers, and what they did."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmseg_eomt.engine.hooks import ProfileHook
from tests.engine.engine_toys import logged, runner
from tests.engine.watch.speed_tasks import Sleep


def marks(path: Path) -> Counter[str]:
    """How often each name occurs in a trace."""
    with gzip.open(path, "rt") as file:
        trace = json.load(file)
    return Counter(event["name"] for event in trace["traceEvents"] if event.get("ph") == "X")


@pytest.mark.parametrize(("step", "count"), [(1, 2), (3, 1), (5, 2)])
def test_trace_has_the_steps_and_their_operators(step: int, count: int, tmp_path: Path) -> None:
    hooks: list[Any] = [ProfileHook(step=step, count=count)]
    runner(tmp_path, steps=6, batch_size=2, hooks=hooks).train()
    name = f"steps_{step}-{step + count - 1}_rank0"
    folder = tmp_path / "profile"
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.trace.json.gz", f"{name}.txt"]
    found = marks(folder / f"{name}.trace.json.gz")
    steps = {mark: n for mark, n in found.items() if mark.startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{step + index}": 1 for index in range(count)}
    # Two micro-batches a step: three linear layers of blocks, the patches' and the class head.
    assert found["aten::linear"] == count * 2 * 5
    assert found["Optimizer.step#AdamW.step"] == count
    rows = (folder / f"{name}.txt").read_text()
    assert "aten::addmm" in rows and "Self CPU" in rows


class SlowlyWritten(ProfileHook):
    """Writes for two seconds."""

    def _write(self, runner: Any, found: Any) -> None:
        time.sleep(2)


def test_writing_does_not_count_as_training(tmp_path: Path) -> None:
    hooks: list[Any] = [SlowlyWritten(step=3, count=1), Sleep(step=0.2)]
    runner(tmp_path, steps=4, interval=2, hooks=hooks).train()
    assert logged(tmp_path, "images_per_second")[4] > 4  # else 8 images in 2.4 s


def test_a_resumed_run_profiles_the_steps_of_the_run(tmp_path: Path) -> None:
    runner(tmp_path, steps=3).train()
    hooks: list[Any] = [ProfileHook(step=5, count=1)]
    runner(tmp_path, steps=6, hooks=hooks, resume=True).train()
    found = marks(tmp_path / "profile/steps_5-5_rank0.trace.json.gz")
    assert [mark for mark in found if "ProfilerStep" in mark] == ["ProfilerStep#5"]


@pytest.mark.parametrize(
    ("step", "count", "message"),
    [
        (0, 1, "both must be at least 1"),
        (1, 0, "both must be at least 1"),
        (5, 3, "ends at step 7, but this run makes steps 1 to 6"),
        (7, 1, "steps 1 to 6"),
    ],
)
def test_steps_that_the_run_does_not_have_are_refused_before_the_first(
    step: int, count: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        runner(tmp_path, hooks=[ProfileHook(step=step, count=count)]).train()
    assert not list(tmp_path.rglob("scalars.json"))


def test_steps_done_before_a_resume_are_refused(tmp_path: Path) -> None:
    runner(tmp_path, steps=3).train()
    with pytest.raises(ValueError, match="this run makes steps 4 to 6"):
        runner(tmp_path, steps=6, hooks=[ProfileHook(step=3, count=2)], resume=True).train()
