"""A profile of a few training steps: `tools/train.py --profile STEP COUNT`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch.profiler import ProfilerAction, profile

FOLDER = "profile"
SHOWN_OPERATORS = 20


def check_window(step: int, count: int, *, first: int, last: int) -> None:
    """Check that a run has the steps to profile.

    Args:
        step (int): The first of them, from 1 as in the log.
        count (int): How many.
        first (int): The first step that is to be made.
        last (int): The last step of the run.

    Raises:
        ValueError: If a number is not positive or a step lies outside of the run.
    """
    if step < 1 or count < 1:
        raise ValueError(f"profile is step {step}, count {count}: both must be at least 1.")
    if step < first or step + count - 1 > last:
        raise ValueError(
            f"profile is step {step}, count {count}, which ends at step {step + count - 1}, but "
            f"this run makes steps {first} to {last}: choose steps among these."
        )


@HOOKS.register_module()
class ProfileHook(Hook):  # type: ignore[misc]
    """Profiles steps and writes what each process did.

    In the folder ``profile`` of the run, for each process: ``steps_11-13_rank0.trace.json.gz``,
    a Chrome trace (for https://ui.perfetto.dev or chrome://tracing) in which the mark
    ``ProfilerStep#11`` is step 11 with the reading of its data, and ``steps_11-13_rank0.txt``,
    its costliest operators. The step before the first one warms the profiler up, if there is one.

    Args:
        step (int): The first step to profile, from 1 as in the log.
        count (int): How many steps.

    Raises:
        ValueError: If a number is not positive; before training if a step lies outside of the run.
    """

    # After all that a step's other hooks do.
    priority = "LOWEST"

    def __init__(self, *, step: int, count: int) -> None:
        check_window(step, count, first=1, last=step + count)
        self.step, self.count = step, count
        self._profile: profile | None = None

    def before_train(self, runner: Any) -> None:
        """Checks the steps, and begins if the first of them is the next."""
        check_window(self.step, self.count, first=runner.iter + 1, last=runner.max_iters)
        if self.step == runner.iter + 1:
            self._start(runner, self.step)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Begins to warm up one step before the first."""
        if self.step == runner.iter + 2:
            self._start(runner, runner.iter + 1)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Ends a step; after the last one the files are written."""
        if self._profile is None:
            return
        self._profile.step()
        if runner.iter + 1 == self.step + self.count - 1:
            self._stop()

    def after_train(self, runner: Any) -> None:
        """Writes what there is if training was stopped before the last of the steps."""
        self._stop()

    def _start(self, runner: Any, now: int) -> None:
        self._profile = profile(
            schedule=lambda number: self._action(number or now),
            on_trace_ready=lambda found: self._write_in_pause(runner, found),
            record_shapes=True,
        )
        # The profiler counts from 0; its marks shall bear the numbers of the run.
        self._profile.step_num = now
        self._profile.start()

    def _action(self, number: int) -> ProfilerAction:
        if number < self.step:
            return ProfilerAction.WARMUP
        last = self.step + self.count - 1
        if number > last:
            return ProfilerAction.NONE
        return ProfilerAction.RECORD_AND_SAVE if number == last else ProfilerAction.RECORD

    def _stop(self) -> None:
        if self._profile is not None:
            self._profile.stop()
        self._profile = None

    def _write_in_pause(self, runner: Any, found: profile) -> None:
        """Writing takes seconds, which are no training: the log's speed leaves them out."""
        clock = getattr(runner.train_loop, "clock", None)
        with nullcontext() if clock is None else clock.pause():
            self._write(runner, found)

    def _write(self, runner: Any, found: profile) -> None:
        folder = Path(runner.work_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = f"steps_{self.step}-{self.step + self.count - 1}_rank{get_rank()}"
        path = folder / f"{name}.trace.json.gz"
        half = path.with_name(f".{path.name}")
        found.export_chrome_trace(str(half))
        os.replace(half, path)
        averages = found.key_averages()
        on_device = any(event.self_device_time_total > 0 for event in averages)
        table = averages.table(
            sort_by="self_cuda_time_total" if on_device else "self_cpu_time_total",
            row_limit=SHOWN_OPERATORS,
        )
        text = path.with_name(f"{name}.txt")
        text.write_text(table, encoding="utf-8")
        runner.logger.info(f"Profile: {path}; its costliest operators: {text}.")
