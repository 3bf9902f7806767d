"""Learning rates: two-stage warm-up, then a polynomial; steps as shares of the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper, _ParamScheduler
from mmseg.registry import PARAM_SCHEDULERS
from torch.optim import Optimizer


def resolve_steps(value: float | int, total: int, *, name: str) -> float:
    """``value`` in steps: a float is a share of ``total``, an int is steps.

    Args:
        value (float | int): Share in [0, 1], or steps >= 0.
        total (int): Steps of the run.
        name (str): The setting, for the error.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} is {value!r}: give a float in [0, 1] (share of the run) or an int (steps)."
        )
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{name} is {value} steps: it must not be negative.")
        return float(value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{name} is {value!r}: a float is a share of the run and lies in [0, 1]; write "
            "absolute steps as an int."
        )
    return float(round(value * total))


FOREVER = 10**9
SCALE_RULES = ("sqrt", "linear", "none")
ROLES = ("head", "backbone")


def two_stage_factor(
    role: str, step: int, total: int, *, warmup: tuple[float, float], power: float
) -> float:
    """Share of the full rate at ``step``, in [0, 1].

    Head: linear from 0 over ``w0`` steps, then ``(1 - progress) ** power`` to 0 at ``total``.
    Backbone: 0 for ``w0`` steps, linear over the next ``w1``, then the same over the rest.
    Source: EoMT (https://github.com/tue-mps/eomt).

    Args:
        role (str): 'head' or 'backbone'.
        step (int): Optimiser step, from 0. Beyond ``total`` the factor is 0.
        total (int): Steps of the run.
        warmup (tuple[float, float]): ``(w0, w1)`` in steps.
        power (float): Of the polynomial.
    """
    begin, length = (0.0, warmup[0]) if role == "head" else warmup
    if step < begin:
        return 0.0
    if step < begin + length:
        return (step - begin) / length
    rest = total - begin - length
    # A run shorter than its warm-up, or extended past its end, must neither divide by zero nor
    # raise a negative number to a fractional power (which is complex).
    progress = (step - begin - length) / rest if rest > 0 else 1.0
    return float((1.0 - min(max(progress, 0.0), 1.0)) ** power)


@PARAM_SCHEDULERS.register_module()
class TwoStageWarmupPolyLR(_ParamScheduler):  # type: ignore[misc]
    """Two-stage warm-up and polynomial decay, by the ``role`` of each parameter group.

    The rate is a pure function of the step (:func:`two_stage_factor`), so a resumed run has the
    rates of an unbroken one. The current config decides: a resumed run may have another length,
    warm-up or rate, and only the step comes from the checkpoint.

    Args:
        optimizer (Optimizer | OptimWrapper): Its groups carry ``role``.
        warmup (Sequence[float | int]): ``(head, backbone)``; floats are shares of the run, ints
            steps. Defaults to (0.0125, 0.025): 500 and 1000 of 40k steps.
        power (float): Of the decay. Defaults to 0.9.
        end (int): Steps of the run. The runner fills in ``max_iters``.
        last_step (int): Step to start from, -1 for a new run.
        by_epoch (bool): Must be False: steps are optimiser steps.
        verbose (bool): Print each rate.

    Raises:
        ValueError: If an argument is out of range or a group has no role.
    """

    def __init__(
        self,
        optimizer: Optimizer | BaseOptimWrapper,
        *,
        warmup: Sequence[float | int] = (0.0125, 0.025),
        power: float = 0.9,
        end: int,
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
    ) -> None:
        if by_epoch:
            raise ValueError(
                "param_scheduler.by_epoch is True: TwoStageWarmupPolyLR counts optimiser steps, "
                "set by_epoch=False."
            )
        if isinstance(warmup, (str, bytes)) or len(warmup) != 2:
            raise ValueError(
                f"param_scheduler.warmup is {warmup!r}: give two numbers, (head, backbone)."
            )
        if power <= 0:
            raise ValueError(f"param_scheduler.power is {power}: it must be positive.")
        if end < 1:
            raise ValueError(f"param_scheduler.end is {end}: a run has at least one step.")
        self.total = int(end)
        self.power = float(power)
        self.warmup = (
            resolve_steps(warmup[0], self.total, name="param_scheduler.warmup[0] (head)"),
            resolve_steps(warmup[1], self.total, name="param_scheduler.warmup[1] (backbone)"),
        )
        if sum(self.warmup) >= self.total:
            print_log(
                f"The warm-ups take {sum(self.warmup):.0f} of {self.total} steps, so the backbone "
                "never trains at its full rate. Give param_scheduler.warmup as shares of the run, "
                "such as (0.0125, 0.025).",
                logger="current",
                level=logging.WARNING,
            )
        _check_roles(optimizer)
        super().__init__(
            optimizer,
            "lr",
            begin=0,
            end=FOREVER,
            last_step=last_step,
            by_epoch=False,
            verbose=verbose,
        )

    def _get_value(self) -> list[float]:
        return self.rates(self.last_step)

    def rates(self, step: int) -> list[float]:
        """The rate of every parameter group at ``step``."""
        factors = {
            role: two_stage_factor(role, step, self.total, warmup=self.warmup, power=self.power)
            for role in ROLES
        }
        return [
            base * factors[group.get("role", "head")]
            for base, group in zip(self.base_values, self.optimizer.param_groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The step; all else follows from the config."""
        return {"last_step": self.last_step, "_global_step": self._global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the step of ``state_dict``, with this scheduler's own settings.

        Args:
            state_dict (dict): Of this class or of another mmengine scheduler.
        """
        self.last_step = int(state_dict["last_step"])
        self._global_step = int(state_dict.get("_global_step", self.last_step))
        # The optimiser's own state has just brought back the rates of the earlier config.
        values = self.rates(self.last_step)
        groups = self.optimizer.param_groups
        for group, base, value in zip(groups, self.base_values, values, strict=True):
            group["initial_lr"], group["lr"] = base, value
        self._last_value = values


def _check_roles(optimizer: Optimizer | BaseOptimWrapper) -> None:
    # A wrapper's own param_groups may hold one pseudo group more, for logging.
    inner = optimizer.optimizer if isinstance(optimizer, BaseOptimWrapper) else optimizer
    for index, group in enumerate(inner.param_groups):
        if group.get("role") not in ROLES:
            raise ValueError(
                f"Parameter group {index} has role {group.get('role')!r}, TwoStageWarmupPolyLR "
                f"needs one of {ROLES}: set optim_wrapper.constructor="
                "'LayerDecayOptimWrapperConstructor'."
            )


def lr_factor(auto_scale_lr: Mapping[str, Any] | None, global_batch_size: int) -> float:
    """What ``auto_scale_lr`` multiplies the learning rates with.

    Args:
        auto_scale_lr (Mapping, optional): ``enable`` (default False), ``base_batch_size`` (the
            batch the rate was chosen for) and ``rule``: 'sqrt' (default; keeps the noise of Adam's
            steps, https://arxiv.org/abs/2205.10287), 'linear' or 'none'.
        global_batch_size (int): Images of a step.

    Raises:
        ValueError: If a value is out of range.
    """
    if not auto_scale_lr or not auto_scale_lr.get("enable", False):
        return 1.0
    rule = auto_scale_lr.get("rule", "sqrt")
    base = auto_scale_lr.get("base_batch_size")
    if rule not in SCALE_RULES:
        raise ValueError(f"auto_scale_lr.rule is {rule!r}: it must be one of {SCALE_RULES}.")
    if not isinstance(base, int) or base < 1:
        raise ValueError(
            f"auto_scale_lr.base_batch_size is {base!r}: give the global batch that the learning "
            "rate was chosen for (16 for EoMT)."
        )
    ratio = global_batch_size / base
    return float({"sqrt": ratio**0.5, "linear": ratio, "none": 1.0}[rule])
