"""How training runs: optimiser, schedule, loop, hooks and logs. Importing it registers them."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.engine import hooks, loggers, optimizer, runner, schedules

__all__ = ["hooks", "loggers", "optimizer", "runner", "schedules"]
