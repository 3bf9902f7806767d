"""Speed of a run: images a second, waiting for data, memory, and the peaks of devices."""

from __future__ import annotations

import os
import re
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
from mmseg_eomt.engine.watch.cost import gradients_of, training_flops
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


# Dense TFLOP/s with sums in float32, which is how PyTorch multiplies matrices; sheets often print
# those with sparsity, which are twice as many. Names are those the driver tells, matched whole:
# slices (MIG), laptop and export versions are other devices.
# Sources: nvidia.com/en-us/data-center/{h100,h200,a100,a10,a30,a40,l4,l40,l40s,v100,tesla-t4}
# and the data sheets of RTX A6000 and RTX 6000 Ada; of GeForce the architecture's white paper
# (GA102, appendix A; Ada, appendix A).
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"H100 80GB HBM3|H200|GH200 \d+GB", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H[12]00 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    (r"H100 PCIe", {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (
        r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe",
        {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    ),
    (r"A10", {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2}),
    (r"A30", {"bf16": 165.0, "tf32": 82.0, "fp32": 10.3}),
    (r"A40", {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"L4", {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    (r"L40", {"bf16": 181.0, "tf32": 90.5, "fp32": 90.5}),
    (r"L40S", {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6}),
    (r"RTX A6000", {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"RTX 6000 Ada Generation", {"bf16": 364.2, "tf32": 182.1, "fp32": 91.1}),
    (r"GeForce RTX 3090", {"bf16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"GeForce RTX 4090", {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    # Before Ampere there is neither bf16 nor tf32.
    (r"V100-SXM2-\d+GB", {"fp16": 125.0, "fp32": 15.7}),
    (r"V100-PCIE-\d+GB", {"fp16": 112.0, "fp32": 14.0}),
    (r"T4", {"fp16": 65.0, "fp32": 8.1}),
)


def peak_tflops(name: str, precision: str) -> float | None:
    """The most TFLOP/s of a device.

    Args:
        name (str): As ``torch.cuda.get_device_name`` gives it.
        precision (str): 'bf16', 'fp16', 'tf32' or 'fp32'.

    Returns:
        float: None if the table does not have the device or the precision.
    """
    for pattern, peaks in _PEAKS:
        if re.fullmatch(rf"(?:NVIDIA |Tesla )*(?:{pattern})", name):
            # From Ampere on both have the same rate.
            return peaks.get(precision, peaks.get("bf16") if precision == "fp16" else None)
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """:func:`peak_tflops` of this process's device; None for anything that is no CUDA device.

    Args:
        device (torch.device): Where the model is.
        precision (str): Of training: 'bf16', 'fp16' or 'fp32', which is tf32 where PyTorch may
            use it.
    """
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return peak_tflops(torch.cuda.get_device_name(device), precision)
