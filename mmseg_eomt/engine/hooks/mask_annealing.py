"""Mask annealing: how often a query is still masked, per joint block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.schedules import resolve_steps


def default_windows(num_blocks: int) -> list[tuple[float, float]]:
    """Shares of the run over which each joint block is annealed.

    Every window lasts 1/6 of the run; the first begins at 1/6, the last at 4/6, evenly spaced.
    This is the rule behind the published DINOv2 configs of EoMT.

    Args:
        num_blocks (int): Joint blocks L.

    Returns:
        list[tuple[float, float]]: L pairs (start, end).
    """
    spacing = 3 / 6 / (num_blocks - 1) if num_blocks > 1 else 0.0
    return [(1 / 6 + i * spacing, 2 / 6 + i * spacing) for i in range(num_blocks)]


def mask_probability(step: int, start: float, end: float, *, power: float = 0.9) -> float:
    """Probability at ``step``: 1 before ``start``, 0 from ``end``, between them polynomial."""
    if step < start:
        return 1.0
    if step >= end:
        return 0.0
    return float((1.0 - (step - start) / (end - start)) ** power)


@HOOKS.register_module()
class MaskAnnealingHook(Hook):  # type: ignore[misc]
    """Sets the head's mask probabilities before each step, for that step.

    They are a pure function of the step, so a resumed run continues exactly. Validation and
    testing keep what training set last.

    Args:
        starts (Sequence[float | int], optional): Where each joint block's annealing begins;
            floats are shares of the run, ints steps. Defaults to :func:`default_windows`.
        ends (Sequence[float | int], optional): Where it ends. Give both or neither.
        power (float): Of ``(1 - progress) ** power``. Defaults to 0.9 (EoMT).

    Raises:
        ValueError: If only one of ``starts`` and ``ends`` is given, or lengths differ.
    """

    priority = "HIGH"

    def __init__(
        self,
        *,
        starts: Sequence[float | int] | None = None,
        ends: Sequence[float | int] | None = None,
        power: float = 0.9,
    ) -> None:
        if (starts is None) != (ends is None):
            raise ValueError(
                f"MaskAnnealingHook got starts={starts} and ends={ends}: give both or neither."
            )
        if starts is not None and ends is not None and len(starts) != len(ends):
            raise ValueError(
                f"MaskAnnealingHook got {len(starts)} starts and {len(ends)} ends: give one of "
                "each per joint block."
            )
        if power <= 0:
            raise ValueError(f"MaskAnnealingHook.power is {power}: it must be positive.")
        self.starts, self.ends, self.power = starts, ends, power
        self.windows: list[tuple[float, float]] = []

    def resolve(self, num_blocks: int, total: int) -> list[tuple[float, float]]:
        """The windows in steps.

        Args:
            num_blocks (int): Joint blocks L.
            total (int): Steps of the run.

        Returns:
            list[tuple[float, float]]: L pairs (start, end).

        Raises:
            ValueError: If their number is not L or a window ends before it starts.
        """
        if self.starts is None or self.ends is None:
            given: list[tuple[float | int, float | int]] = list(default_windows(num_blocks))
        else:
            given = list(zip(self.starts, self.ends, strict=True))
        if len(given) != num_blocks:
            raise ValueError(
                f"MaskAnnealingHook has {len(given)} starts and ends, the head has {num_blocks} "
                "joint blocks: give one per joint block, or leave starts and ends out."
            )
        windows = []
        for index, (start, end) in enumerate(given):
            begin = resolve_steps(start, total, name=f"MaskAnnealingHook.starts[{index}]")
            finish = resolve_steps(end, total, name=f"MaskAnnealingHook.ends[{index}]")
            if finish < begin:
                raise ValueError(
                    f"MaskAnnealingHook: block {index} ends at step {finish:.0f}, before it "
                    f"starts at {begin:.0f}."
                )
            windows.append((begin, finish))
        return windows

    def probabilities(self, step: int) -> list[float]:
        """Probability of each joint block at ``step``, once the windows are known."""
        return [mask_probability(step, start, end, power=self.power) for start, end in self.windows]

    def before_train(self, runner: Any) -> None:
        """Fixes the windows in steps of this run."""
        model: Any = unwrap(runner.model)
        self.windows = self.resolve(model.decode_head.num_joint_blocks, runner.max_iters)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Sets the probabilities of the step about to run."""
        model: Any = unwrap(runner.model)
        model.decode_head.set_mask_probs(self.probabilities(runner.iter))
