"""Stops a distributed run whose processes no longer have the same weights."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_eomt.engine.watch.weight_hash import check_equal_weights


@HOOKS.register_module()
class WeightHashHook(Hook):  # type: ignore[misc]
    """Compares a hash of each parameter over processes at the start and every so many steps.

    Args:
        interval (int): Steps between comparisons; 0 compares at the start only. Defaults to 1000.

    Raises:
        ValueError: If it is negative.
    """

    # After other hooks' work on the weights, before a checkpoint of them is written.
    priority = "LOW"

    def __init__(self, *, interval: int = 1000) -> None:
        if interval < 0:
            raise ValueError(f"WeightHashHook.interval is {interval}: it must be at least 0.")
        self.interval = interval

    def before_train(self, runner: Any) -> None:
        """Compares the weights that training starts from."""
        compared = self._compare(runner, f"Before step {runner.iter + 1}")
        if compared == 0 and get_world_size() > 1:
            runner.logger.info("All weights are sharded: there are no copies to compare.")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Compares at the interval."""
        if self.interval and (runner.iter + 1) % self.interval == 0:
            self._compare(runner, f"After step {runner.iter + 1}")

    @staticmethod
    def _compare(runner: Any, when: str) -> int:
        return check_equal_weights(runner.model, when=when) if get_world_size() > 1 else 0
