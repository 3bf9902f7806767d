"""How long the steps since the last log line took, and how much of it they waited for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Lap:
    """A stretch of training.

    Attributes:
        seconds: Of it, without pauses.
        waited: Seconds of these in which the process waited for the data loader.
    """

    seconds: float
    waited: float


class StepClock:
    """Runs from one log line to the next; the train loop tells it of waits and pauses.

    It reads the host's clock and never waits for a device. A device may be behind the host between
    two log lines, not at them: there the losses are read.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._waited = self._paused = 0.0

    @property
    def running(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._start is not None

    def start(self) -> None:
        """Begins a stretch now."""
        self._start = time.perf_counter()
        self._waited = self._paused = 0.0

    def lap(self) -> Lap:
        """Ends the stretch, begins the next one."""
        assert self._start is not None
        seconds = time.perf_counter() - self._start - self._paused
        lap = Lap(seconds=seconds, waited=self._waited)
        self.start()
        return lap

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no training, such as a validation."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin
