"""A process of a run that vanishes, or stands still, in the middle of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_eomt.apis.processes import explaining_lost_processes
from mmseg_eomt.apis.run import run_training
from tests.engine.engine_toys import ToySegmentor
from tests.engine.exact import exact_runner
from tests.engine.sharding_tasks import config

STEP = 3


@HOOKS.register_module()
class Vanish(Hook):  # type: ignore[misc]
    """Ends or stops process 1 before a step."""

    def __init__(self, how: str) -> None:
        self.how = how

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == STEP and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL if self.how == "ended" else signal.SIGSTOP)


def end_or_be_left(out: str) -> None:
    """One of two processes of a toy run, of which one ends."""
    run = exact_runner(
        Path(out),
        model=ToySegmentor(),
        hooks=[Vanish("ended")],
        launcher="pytorch",
        env_cfg={"dist_cfg": {"timeout": 60}},
    )
    with explaining_lost_processes(run):
        run.train()


def stand_still_or_be_left(out: str, data: Any, timeout: float) -> None:
    """One of two processes of a whole run, of which one does not go on."""
    cfg = config(out, data, world=2, steps=6, hooks=[{"type": "Vanish", "how": "silent"}])
    cfg.env_cfg.dist_cfg.timeout = timeout
    run_training(cfg)
