"""Speed of a run: images a second, waiting for data, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather
from torch import Tensor

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.watch.cost import gradients_of, peak_of, training_flops
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor

TERA = 1e12


class RunSpeed:
    """Measures a run of ``AccumulationTrainLoop``; of other loops only the memory.

    The first step of a process, in which kernels are chosen and workers start, is not measured,
    and neither are validations. Writing a checkpoint is.

    Args:
        peak_tflops (float, optional): The most TFLOP/s of each process's device. Defaults to
            None, looked up by the device's name; where it is not known there is no utilisation.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self._given_peak = peak_tflops
        self._peak: float | None = None
        self._prepared = False
        self._steps = 0
        self._flops = 0
        self._flops_of: dict[tuple[int, ...], int] = {}

    def add(self, runner: Any, data_batch: dict[str, Any] | None) -> None:
        """Notes a finished step.

        Args:
            runner (Runner): In training.
            data_batch (dict): All images of the step that this process had.
        """
        if not self._prepared:
            self._prepare(runner)
        clock = _clock(runner)
        if clock is None:
            return
        images = list((data_batch or {}).get("inputs", ()))
        flops = self._count(runner, images) if self._peak is not None and images else 0
        if clock.running:
            self._steps += 1
            self._flops += flops
            return
        device = _device(runner)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once in a run: the first step is over now
        clock.start()

    def measure(self, runner: Any) -> dict[str, float]:
        """What was measured since the last call; all processes call it together.

        Right after the losses were read, so that the device has done what is counted.

        Args:
            runner (Runner): In training.

        Returns:
            dict[str, float]: ``images_per_second`` over all processes, ``data_wait`` (share of the
            time; of the process that waited longest), ``memory_*`` in MiB (of the process that
            needs most), and with a known peak ``mfu``, the share of it that the model's operations
            make. Without a step to measure only the memory.
        """
        memory = memory_use(_device(runner))
        numbers = list(memory.values())
        steps, flops, clock = self._steps, self._flops, _clock(runner)
        self._steps = self._flops = 0
        measured = clock is not None and steps > 0
        if clock is not None and measured:
            lap = clock.lap()
            numbers += [lap.seconds, lap.waited / lap.seconds, flops]
        every = torch.stack(all_gather(torch.tensor(numbers, dtype=torch.float64)))
        most = every.max(dim=0).values.tolist()  # [processes, numbers]
        found = dict(zip(memory, most, strict=False))
        if not measured:
            return found
        seconds, wait, _ = most[len(memory) :]
        speed = {
            "images_per_second": steps * runner.train_loop.global_batch_size / seconds,
            "data_wait": wait,
        }
        if self._peak is not None and flops > 0:
            speed["mfu"] = float(every[:, -1].mean()) / (seconds * self._peak * TERA)
        return {**speed, **found}

    def _prepare(self, runner: Any) -> None:
        self._prepared = True
        wrapper = runner.optim_wrapper
        peak = self._given_peak or peak_of(_device(runner), getattr(wrapper, "precision", "fp32"))
        if peak is None or _clock(runner) is None:
            return
        model = unwrap(runner.model)
        if not isinstance(model, EoMTSegmentor) or not runner.cfg.get("model"):
            runner.logger.info(
                f"The log has no mfu: the operations of {type(model).__name__} are counted on a "
                "model of the config only, and only if it is an EoMTSegmentor."
            )
            return
        self._peak = peak

    def _count(self, runner: Any, images: list[Tensor]) -> int:
        """Operations of a batch; a training batch is padded to its largest image."""
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        shape = (int(images[0].shape[-3]), height, width)
        if shape not in self._flops_of:
            self._flops_of[shape] = training_flops(
                runner.cfg.model, shape, trained=gradients_of(unwrap(runner.model))
            )
        return len(images) * self._flops_of[shape]


def _clock(runner: Any) -> StepClock | None:
    clock: StepClock | None = getattr(runner.train_loop, "clock", None)
    return clock


def _device(runner: Any) -> torch.device:
    device: torch.device = next(runner.model.parameters()).device
    return device


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


_MIB = 2**20
_STATM = Path("/proc/self/statm")


def memory_use(device: torch.device) -> dict[str, float]:
    """Memory in MiB.

    Args:
        device (torch.device): Where the model is.

    Returns:
        dict[str, float]: On CUDA ``memory_allocated`` and ``memory_reserved``, the most since the
        last log line (mmengine's log processor resets both there); else ``memory_resident``, now
        and without the data loader's workers, where the system tells it.
    """
    if device.type == "cuda":
        return {
            "memory_allocated": torch.cuda.max_memory_allocated(device) / _MIB,
            "memory_reserved": torch.cuda.max_memory_reserved(device) / _MIB,
        }
    if not _STATM.is_file():
        return {}
    pages = int(_STATM.read_text().split()[1])
    return {"memory_resident": pages * os.sysconf("SC_PAGE_SIZE") / _MIB}
