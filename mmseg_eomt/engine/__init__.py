"""How training runs: optimiser, schedule, loop, hooks and logs."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.engine import hooks, optimizers, runner, schedulers, visualization

__all__ = ["hooks", "optimizers", "runner", "schedulers", "visualization"]
