"""What the processes of the speed tests do."""

from __future__ import annotations

import os
import time
from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_eomt.apis.run import run_training
from tests.engine.sharding_tasks import config

# So little that a tiny model reaches some share of it.
PEAK_TFLOPS = 1e-3


@HOOKS.register_module()
class Sleep(Hook):  # type: ignore[misc]
    """Steps and validations that last; what the host's clock then must show is known."""

    def __init__(self, *, step: float = 0.0, val: float = 0.0) -> None:
        self.step, self.val = step, val

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        time.sleep(self.step)

    def before_val(self, runner: Any) -> None:
        time.sleep(self.val)


def train(out: str, data: Any, world: int, options: dict[str, Any]) -> None:
    """One process of a run; the second one is slow."""
    cfg = config(out, data, world=world, **options)
    cfg.default_hooks.runtime_info.peak_tflops = PEAK_TFLOPS
    slow = int(os.environ.get("RANK", 0)) == 1
    cfg.custom_hooks = [*cfg.custom_hooks, {"type": "Sleep", "step": 0.5 if slow else 0.0}]
    run_training(cfg)
