"""A profile of a run as one argument."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config

from mmseg_eomt.engine.hooks.profile import ProfileHook, check_window


def apply_profile(cfg: Config, window: Sequence[int] | None) -> None:
    """Profile some steps of a run, see `ProfileHook`.

    Args:
        cfg: The config, with its number of steps; its hooks are changed.
        window: The first step, from 1 as in the log, and how many. None keeps the config's hooks.

    Raises:
        ValueError: If it is no such pair, or the run does not have these steps.
    """
    if window is None:
        return
    if isinstance(window, str) or len(window) != 2:
        raise ValueError(f"profile is {window!r}: give (STEP, COUNT), such as (100, 5).")
    step, count = map(int, window)
    check_window(step, count, first=1, last=int(cfg.train_cfg.max_iters))
    name = ProfileHook.__name__
    hooks = [own for own in cfg.get("custom_hooks") or () if own["type"] != name]
    cfg.custom_hooks = [*hooks, {"type": name, "step": step, "count": count}]
