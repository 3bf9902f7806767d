"""Which steps have a log line."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import LoggerHook


def is_logged(runner: Any, step: int) -> bool:
    """Whether the line after ``step`` (from 0) is logged, or the run ends there."""
    done = step + 1
    every = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
    return done == runner.max_iters or any(done % interval == 0 for interval in every)
