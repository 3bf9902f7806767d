"""Log lines that are true: values of all processes and micro-batches, at each step."""

from __future__ import annotations

import re
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import LogProcessor
from mmseg.registry import HOOKS, LOG_PROCESSORS
from torch import Tensor

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.mixed_precision import NonFiniteError
from mmseg_eomt.engine.watch.speed import RunSpeed
from mmseg_eomt.errors import listed

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
        model = unwrap(runner.model)
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


class StepRecord:
    """Scalars of some training steps.

    mmengine reads every loss back at every step, which makes the host wait for the GPU some
    twenty times a step. Here the values stay where they are; :meth:`flush` reads all of them in
    one transfer and averages them over steps and processes.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[dict[str, Tensor]] = []
        self._files: list[list[str]] = []

    def add(self, step: int, values: dict[str, Tensor], files: list[str]) -> None:
        """Keeps the scalars of one step.

        Args:
            step (int): Its number, from 0.
            values (dict[str, Tensor]): Scalars; the same names at each step.
            files (list[str]): Images it was computed from.
        """
        self._steps.append(step)
        self._values.append({name: value.detach() for name, value in values.items()})
        self._files.append(files)

    def state(self) -> dict[str, Any]:
        """The steps kept, as plain data: a run resumed between log lines logs the same means."""
        names = list(self._values[0]) if self._values else []
        rows = [torch.stack([row[name].float() for name in names]) for row in self._values]
        return {
            "steps": list(self._steps),
            "names": names,
            "values": torch.stack(rows).cpu() if rows else torch.zeros(0, 0),
            "files": [list(files) for files in self._files],
        }

    def load(self, states: list[dict[str, Any]]) -> None:
        """Takes steps over from :meth:`state`, of this process or of all that there were.

        Args:
            states (list[dict]): One: this process's own. Several: the mean of their values, which
                gives the same mean over any number of processes.
        """
        first = states[0]
        values = torch.stack([state["values"] for state in states]).mean(dim=0)
        self._steps = list(first["steps"])
        self._values = [dict(zip(first["names"], row, strict=True)) for row in values]
        self._files = [
            [name for state in states for name in state["files"][index]]
            for index in range(len(self._steps))
        ]

    def flush(self, *, must_be_finite: tuple[str, ...] = ("loss",)) -> dict[str, float]:
        """Means over the steps since the last call and over processes; forgets the steps.

        All processes must call it together.

        Args:
            must_be_finite (tuple[str, ...]): Names that may not be infinite or NaN.

        Returns:
            dict[str, float]: Empty if there was no step.

        Raises:
            NonFiniteError: Naming the first bad step and its images, on every process.
        """
        if not self._steps:
            return {}
        names = list(self._values[0])
        rows = [torch.stack([row[name].float() for name in names]) for row in self._values]
        table = torch.stack(rows)  # [steps, names]
        own = table.clone()
        # One NaN makes the mean NaN, so that all processes stop together.
        all_reduce(table, op="mean")
        steps, files = self._steps, self._files
        self._steps, self._values, self._files = [], [], []
        values = table.tolist()
        checked = [names.index(name) for name in must_be_finite if name in names]
        finite = torch.isfinite(table[:, checked]).all(dim=1).tolist()
        if not all(finite):
            bad = finite.index(False)
            found = {names[i]: float(own[bad, i]) for i in checked}
            raise NonFiniteError(
                f"Step {steps[bad] + 1} gave {found} on this process (mean over processes "
                f"{ {names[i]: values[bad][i] for i in checked} }). Images of this process: "
                f"{listed(files[bad], 8)}. Lower the learning rate, use precision bf16 or fp32, or "
                "look at these images and masks."
            )
        return dict(zip(names, table.mean(dim=0).tolist(), strict=True))


# Four decimals would print 1e-5 as 0.0000, and memory with fractions of a byte.
FORMATS = {
    "lr_head": ".3e",
    "lr_backbone": ".3e",
    "images_per_second": ".4g",
    "data_wait": ".1%",
    "mfu": ".1%",
    "memory_allocated": ".0f",
    "memory_reserved": ".0f",
    "memory_resident": ".0f",
}


@LOG_PROCESSORS.register_module()
class StepLogProcessor(LogProcessor):  # type: ignore[misc]
    """mmengine's, counting steps, with each number in the form that suits it.

    Losses reach it as means over the steps since the last line, so its own smoothing is off for
    them; times are averaged over the last ``time_window`` steps.

    Args:
        time_window (int): Steps over which times are averaged. Defaults to 50.
        kwargs: Of mmengine's ``LogProcessor``.
    """

    def __init__(self, *, time_window: int = 50, **kwargs: Any) -> None:
        kwargs.setdefault("by_epoch", False)
        kwargs.setdefault("window_size", 1)
        custom = list(kwargs.pop("custom_cfg", None) or [])
        named = {item.get("log_name", item["data_src"]) for item in custom}
        for name in ("time", "data_time"):
            if name not in named:
                custom.append({"data_src": name, "method_name": "mean", "window_size": time_window})
        super().__init__(custom_cfg=custom, **kwargs)

    def get_log_after_iter(
        self, runner: Any, batch_idx: int, mode: str
    ) -> tuple[dict[str, Any], str]:
        """Scalars for the backends, and the line for people."""
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        for name, form in FORMATS.items():
            value = tag.get(name, tag.get(f"{mode}/{name}"))
            if value is not None:
                line = re.sub(rf"\b{name}: \S+", f"{name}: {value:{form}}", line)
        if "memory_allocated: " in line:
            # mmengine's own, of the first process only.
            line = re.sub(r"\bmemory: \d+  ", "", line)
        return tag, line


def image_paths(data_batch: dict[str, Any] | None) -> list[str]:
    """Image files of a batch, as far as its samples name them."""
    samples = (data_batch or {}).get("data_samples") or []
    return [_path_of(sample) for sample in samples]


def _path_of(sample: Any) -> str:
    if isinstance(sample, dict):  # of pretraining, which has no masks to pack
        return str(sample.get("path", "<no path>"))
    return str(getattr(sample, "img_path", "<no path>"))
