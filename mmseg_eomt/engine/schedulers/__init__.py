"""Learning-rate schedules and step counts."""

from __future__ import annotations

from mmseg_eomt.engine.schedulers.fractions import resolve_steps
from mmseg_eomt.engine.schedulers.two_stage import TwoStageWarmupPolyLR, two_stage_factor

__all__ = ["TwoStageWarmupPolyLR", "resolve_steps", "two_stage_factor"]
