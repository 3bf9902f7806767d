"""The schedules of DINOv2 as functions of the step, so that a resume needs no state of theirs.

Formulas and values are those of facebookresearch/dinov2's public configs (ssl_default_config.yaml:
100 epochs of 1,250 steps). Lengths that it gives in epochs are shares of the run here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmseg_eomt.engine.schedules import resolve_steps


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine.

    Attributes:
        peak (float): Value at the end of the warm-up.
        end (float): Value that the cosine runs towards.
        start (float): Value at the first step of a warm-up. Defaults to 0.
        warmup (float | int): Share of the run, or steps. Defaults to 0, none.
        hold (float | int): First steps, a share or a number, in which the value is 0; the warm-up
            follows them. Defaults to 0, none.
    """

    peak: float
    end: float
    start: float = 0.0
    warmup: float | int = 0
    hold: float | int = 0

    def at(self, step: int, total: int) -> float:
        """The value at ``step`` (from 0) of a run of ``total`` steps; the end's value beyond it."""
        hold = int(resolve_steps(self.hold, total, name="hold"))
        warmup = int(resolve_steps(self.warmup, total, name="warmup"))
        if step < hold:
            return 0.0
        step -= hold
        if step < warmup:
            # Both ends are reached: the last step of the warm-up has the peak.
            share = step / (warmup - 1) if warmup > 1 else 1.0
            return self.start + (self.peak - self.start) * share
        rest = total - hold - warmup
        share = min((step - warmup) / rest, 1.0) if rest > 0 else 1.0
        return self.end + 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class LinearRise:
    """Linear from ``start`` to ``end`` over the first part of a run, then ``end``.

    Attributes:
        start (float): Value at the first step.
        end (float): Value from the end of the rise on.
        length (float | int): Of the rise, as a share of the run or in steps.
    """

    start: float
    end: float
    length: float | int

    def at(self, step: int, total: int) -> float:
        """The value at ``step`` (from 0) of a run of ``total`` steps."""
        length = int(resolve_steps(self.length, total, name="length"))
        if step >= length:
            return self.end
        return self.start + (self.end - self.start) * (step / (length - 1) if length > 1 else 1.0)
