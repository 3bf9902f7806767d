"""Sets what changes from step to step, and ends each step by moving the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from dinov2_pretraining.engine.log_steps import is_logged
from dinov2_pretraining.engine.schedules import LinearRise, WarmupCosine
from mmseg_eomt.checkpoints.describe import unwrap


@HOOKS.register_module()
class PretrainScheduleHook(Hook):  # type: ignore[misc]
    """The schedules of DINOv2, all of them functions of the step alone.

    Lengths are shares of the run (floats) or steps (ints), so shorter runs keep their shape.
    Defaults are those of facebookresearch/dinov2's ssl_default_config.yaml: of 100 epochs 10 of
    warm-up, 30 of rising temperature and 1 with the last layer frozen.

    Args:
        warmup (float | int): Of the learning rate, from 0 to the optimiser's ``lr`` (after
            ``auto_scale_lr``). Defaults to 0.1.
        final_lr (float): End of the rate's cosine, before the layers' factors. Defaults to 1e-6.
        weight_decay (Sequence[float]): Start and end of a cosine. Defaults to (0.04, 0.4).
        teacher_temp (Sequence[float]): Start and end of a rise. Defaults to (0.04, 0.07).
        teacher_temp_warmup (float | int): Length of that rise. Defaults to 0.3.
        momentum (Sequence[float]): Of the teacher, start and end of a cosine. Defaults to
            (0.992, 1).
        freeze_last_layer (float | int): First part of the run in which the prototypes stay.
            Defaults to 0.01.
        freeze_backbone (float | int): First part in which only the heads learn, for released
            weights that new heads would disturb; the backbone's warm-up follows it. Defaults to 0.
    """

    # After the gradients were used and before anything reads the teacher: monitors, checkpoints.
    priority = "VERY_HIGH"

    def __init__(
        self,
        *,
        warmup: float | int = 0.1,
        final_lr: float = 1e-6,
        weight_decay: Sequence[float] = (0.04, 0.4),
        teacher_temp: Sequence[float] = (0.04, 0.07),
        teacher_temp_warmup: float | int = 0.3,
        momentum: Sequence[float] = (0.992, 1.0),
        freeze_last_layer: float | int = 0.01,
        freeze_backbone: float | int = 0,
    ) -> None:
        for name, pair, low, high in (
            ("weight_decay", weight_decay, 0.0, float("inf")),
            ("teacher_temp", teacher_temp, 1e-3, float("inf")),
            ("momentum", momentum, 0.0, 1.0),
        ):
            if len(pair) != 2 or not all(low <= value <= high for value in pair):
                raise ValueError(
                    f"PretrainScheduleHook.{name} is {pair!r}: give two numbers, start and end, "
                    f"from {low:g} to {high:g}."
                )
        self.warmup, self.final_lr = warmup, final_lr
        self.weight_decay = WarmupCosine(weight_decay[0], weight_decay[1])
        self.teacher_temp = LinearRise(teacher_temp[0], teacher_temp[1], length=teacher_temp_warmup)
        self.momentum = WarmupCosine(momentum[0], momentum[1])
        self.freeze_last_layer, self.freeze_backbone = freeze_last_layer, freeze_backbone
        self.lr: float | None = None

    def before_run(self, runner: Any) -> None:
        """Takes the optimiser's rate, before a checkpoint brings back that of its step."""
        groups = runner.optim_wrapper.optimizer.param_groups
        self.lr = max(group["lr"] / group["lr_scale"] for group in groups if group["lr_scale"])

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Sets rates, weight decay and the teacher's temperature of this step."""
        step, total = runner.iter, runner.max_iters
        rates = self.rates(step, total)
        decay = self.weight_decay.at(step, total)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = rates[group["role"]] * group["lr_scale"]
            group["weight_decay"] = decay * group["decayed"]
        model: Any = unwrap(runner.model)
        model.teacher_temp = self.teacher_temp.at(step, total)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves centres and teacher, and shows this step's values in the log."""
        step, total = runner.iter, runner.max_iters
        momentum = self.momentum.at(step, total)
        model: Any = unwrap(runner.model)
        model.update_teacher(momentum)
        if not is_logged(runner, step):
            return  # a message hub gets slower with each value it keeps
        hub = runner.message_hub
        hub.update_scalar("train/momentum", momentum)
        hub.update_scalar("train/teacher_temp", model.teacher_temp)
        hub.update_scalar("train/weight_decay", self.weight_decay.at(step, total))

    def rates(self, step: int, total: int) -> dict[str, float]:
        """The learning rate of each role at ``step`` of ``total``, before the layers' factors."""
        assert self.lr is not None
        head = WarmupCosine(self.lr, self.final_lr, warmup=self.warmup)
        last_layer = WarmupCosine(1.0, 1.0, hold=self.freeze_last_layer)
        return {
            "head": head.at(step, total),
            "last_layer": head.at(step, total) * last_layer.at(step, total),
            "backbone": replace(head, hold=self.freeze_backbone).at(step, total),
        }
