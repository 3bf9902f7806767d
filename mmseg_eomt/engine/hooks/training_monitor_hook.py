"""Losses, true learning rates, gradient norm, mask probabilities and speed for the log."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS
from torch import Tensor

from mmseg_eomt.engine.step_record import StepRecord, image_paths
from mmseg_eomt.engine.watch.run_speed import RunSpeed

DEFAULT_INTERVAL = 10


def role_rates(param_groups: list[dict[str, Any]]) -> dict[str, float]:
    """The largest rate of each role, as ``lr_head`` and ``lr_backbone``.

    With layer decay every group has its own rate; the largest is the one that configs state. A
    group without a role counts as head.
    """
    rates: dict[str, float] = {}
    for group in param_groups:
        name = f"lr_{group.get('role', 'head')}"
        rates[name] = max(rates.get(name, 0.0), float(group["lr"]))
    return dict(sorted(rates.items(), reverse=True))


@HOOKS.register_module()
class TrainingMonitorHook(RuntimeInfoHook):  # type: ignore[misc]
    """Takes ``RuntimeInfoHook``'s place and tells the truth at little cost.

    mmengine's hook logs the rate of parameter group 0 as ``lr`` (with layer decay that of the
    slowest block) and reads every loss back at every step. This one logs ``lr_head``,
    ``lr_backbone``, ``grad_norm`` (before clipping), ``mask_prob_block{i}`` and all losses at the
    logging interval only; losses and norm are means over the steps since the last log line and
    over processes. A loss or gradient norm that is not finite is an error there, if the optimiser
    wrapper has not noticed it before (``stop_on_nonfinite``; False switches both off). Beside them
    it logs ``images_per_second``, ``data_wait``, memory and ``mfu``, see ``RunSpeed.measure``.

    Args:
        interval (int, optional): Steps between log lines. Defaults to None, the LoggerHook's.
        peak_tflops (float, optional): The most TFLOP/s that each process's device can do in the
            precision of training, for ``mfu``. Defaults to None, the data sheet's of known GPUs;
            on other devices there is no ``mfu``.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, *, interval: int | None = None, peak_tflops: float | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"TrainingMonitorHook.interval is {interval}: it must be at least 1.")
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(
                f"TrainingMonitorHook.peak_tflops is {peak_tflops}: it must be positive, or None."
            )
        self.interval = interval
        self._record = StepRecord()
        self._speed = RunSpeed(peak_tflops)
        self._every = interval or DEFAULT_INTERVAL
        self._logger: LoggerHook | None = None

    def before_train(self, runner: Any) -> None:
        """Finds the logging interval."""
        super().before_train(runner)
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        for logger in loggers:
            # A run shorter than the interval would end without a single log line.
            logger.interval = min(logger.interval, runner.max_iters)
        self._logger = loggers[0] if loggers else None
        self._every = self.interval or (loggers[0].interval if loggers else DEFAULT_INTERVAL)

    @property
    def record(self) -> StepRecord:
        """The steps since the last log line; they belong into a checkpoint."""
        return self._record

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the step, but no rate: see the class."""
        runner.message_hub.update_info("iter", runner.iter)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Keeps the step's values; at the logging interval reads, checks and logs them.

        Raises:
            NonFiniteError: Naming the first bad step since the last log line and its images.
        """
        values = dict(outputs or {})
        norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if norm is not None:
            values["grad_norm"] = norm
        if values:
            self._record.add(runner.iter, values, image_paths(data_batch))
        self._speed.add(runner, data_batch)
        done = runner.iter + 1
        if done % self._every == 0 or done == runner.max_iters or self._ends_short_pass(runner):
            self._log(runner)

    def after_train(self, runner: Any) -> None:
        """Checks the steps after the last log line, if training was stopped early."""
        self._record.flush(must_be_finite=self._checked(runner))
        super().after_train(runner)

    def _ends_short_pass(self, runner: Any) -> bool:
        """Whether the logger writes a line of its own, after a first pass over few batches."""
        batches = len(runner.train_dataloader)
        if self._logger is None or runner.iter + 1 != batches:
            return False
        return not self._logger.ignore_last or batches <= self._logger.interval

    def _log(self, runner: Any) -> None:
        if hasattr(runner.optim_wrapper, "settle"):
            runner.optim_wrapper.settle()  # its error says more than the record's
        hub = runner.message_hub
        for name, rate in role_rates(runner.optim_wrapper.optimizer.param_groups).items():
            hub.update_scalar(f"train/{name}", rate)
        means = self._record.flush(must_be_finite=self._checked(runner))
        for name, value in means.items():
            hub.update_scalar(f"train/{name}", value)
        for name, value in self._speed.measure(runner).items():
            # Of this process and machine: a resumed run begins anew.
            hub.update_scalar(f"train/{name}", value, resumed=False)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = getattr(model, "decode_head", None)
        for index, probability in enumerate(getattr(head, "mask_probs", [])):
            hub.update_scalar(f"train/mask_prob_block{index}", float(probability))

    @staticmethod
    def _checked(runner: Any) -> tuple[str, ...]:
        if not getattr(runner.optim_wrapper, "stop_on_nonfinite", True):
            return ()
        # fp16's scale search meets infinite gradients in a healthy run and skips those steps.
        scaled = getattr(runner.optim_wrapper, "loss_scaler", None) is not None
        return ("loss",) if scaled else ("loss", "grad_norm")
