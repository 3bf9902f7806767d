"""Who is left behind ends in time, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.apis.tiny import make_data
from tests.engine.elastic.lost import STEP
from tests.ranks import start_ranks


def last_words(folder: Path, task: str, *arguments: Any) -> str:
    """What process 0 prints, which ends because of process 1."""
    task = f"tests.engine.elastic.lost:{task}"
    left, lost = start_ranks(2, task, str(folder / "run"), *arguments, log=folder / "log")
    left.join(120)
    lost.kill()
    text = (folder / "log" / "rank0.txt").read_text()
    assert left.exitcode == 1, text[-3000:]
    assert f"ConnectionError: Process 0 of 2 cannot go on after step {STEP}: " in text
    return text


def test_a_process_that_ends_takes_the_other_one_along(tmp_path: Path) -> None:
    text = last_words(tmp_path, "end_or_be_left")
    assert "by peer" in text


@pytest.mark.slow
def test_a_process_that_is_silent_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=8)
    text = last_words(tmp_path, "stand_still_or_be_left", data, 10.0)
    assert "did not answer for 10.0 s (env_cfg.dist_cfg.timeout)" in text
    assert "Timed out waiting 10000ms" in text
    # It is in the log of the run as well.
    assert "cannot go on after step" in (tmp_path / "run" / "train.log").read_text()
