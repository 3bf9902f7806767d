"""A progress bar in the terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Steps a second, or seconds a step where that reads better."""

    def render(self, task: Task) -> Text:
        """The rate of ``task``."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("-- it/s")
        return Text(f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.2f} s/it")


@HOOKS.register_module()
class ProgressHook(Hook):  # type: ignore[misc]
    """Shows step, total, rate, time left and loss while training, and validation's progress.

    Nothing is shown on other processes than the first, or where output is no terminal (a file, a
    pipe, a cluster's log); the log lines are there.

    Args:
        console (Console, optional): Where to draw. Defaults to None, standard error.
    """

    priority = "VERY_LOW"

    def __init__(self, *, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._train: Any = None
        self._other: Any = None
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def before_train(self, runner: Any) -> None:
        """Opens the bar at the current step."""
        if self._open(runner):
            self._train = self._bar("train", total=runner.max_iters, done=runner.iter)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves the bar; the loss is the last logged one, so that nothing waits for the GPU."""
        if self._progress is None or self._train is None:
            return
        logged = runner.message_hub.log_scalars.get("train/loss")
        note = f"loss {logged.current():.4f}" if logged is not None else ""
        self._progress.update(self._train, completed=runner.iter + 1, note=note)

    def after_train(self, runner: Any) -> None:
        """Closes the bar."""
        self._close()

    def before_val(self, runner: Any) -> None:
        """Opens a bar for validation."""
        self._start_other(runner, "val", len(runner.val_dataloader))

    def before_test(self, runner: Any) -> None:
        """Opens a bar for testing."""
        self._start_other(runner, "test", len(runner.test_dataloader))

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves validation's bar."""
        self._advance_other(batch_idx)

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves testing's bar."""
        self._advance_other(batch_idx)

    def after_val(self, runner: Any) -> None:
        """Removes validation's bar."""
        self._end_other()

    def after_test(self, runner: Any) -> None:
        """Removes testing's bar."""
        self._end_other()

    def after_run(self, runner: Any) -> None:
        """Leaves the terminal as it was."""
        self._close()

    def _open(self, runner: Any) -> bool:
        if self._progress is not None:
            return True
        if not self._console.is_terminal or not is_main_process():
            return False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        # Log lines must go through the bar's own stream, or they tear it apart.
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._redirected.append((handler, handler.setStream(sys.stderr)))
        return True

    def _bar(self, name: str, *, total: int, done: int = 0) -> Any:
        assert self._progress is not None
        return self._progress.add_task(name, total=total, completed=done, note="")

    def _start_other(self, runner: Any, name: str, total: int) -> None:
        if self._open(runner):
            self._other = self._bar(name, total=total)

    def _advance_other(self, batch_idx: int) -> None:
        if self._progress is not None and self._other is not None:
            self._progress.update(self._other, completed=batch_idx + 1)

    def _end_other(self) -> None:
        if self._progress is not None and self._other is not None:
            self._progress.remove_task(self._other)
        self._other = None
        if self._train is None:
            self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        for handler, stream in self._redirected:
            if stream is not None:
                handler.setStream(stream)
        self._progress, self._train, self._other, self._redirected = None, None, None, []
