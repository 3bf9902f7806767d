"""Runs whose every random source matters, and a comparison of training checkpoints bit by bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor
from torch.nn import functional as F

from mmseg_eomt.datasets.samplers import StepSampler
from mmseg_eomt.datasets.transforms.loading import SeedSample
from mmseg_eomt.engine.runner import SegmentationRunner
from tests.engine.engine_toys import ToyData, ToySegmentor, loader, runner

MASKS = {"type": "MaskAnnealingHook"}
# What tells when and where a run was, or how long it took.
CLOCKS = ("['meta']['time']", "['cfg']", "['experiment_name']", "time']['values']")


class Crash(RuntimeError):
    pass


class CrashBefore(Hook):  # type: ignore[misc]
    """Stops a run as a crash would, before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.step:
            raise Crash


class DroppingSegmentor(ToySegmentor):
    """Draws from torch's global generator in every training step, as drop path does."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        x = torch.stack(list(inputs)) if isinstance(inputs, list) else inputs
        return super().forward(F.dropout(x, 0.3, self.training), data_samples, mode)


class AugmentedData(ToyData):
    """Adds noise from all three global generators after `SeedSample`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(int(index))
        SeedSample().transform({"sample_idx": index})
        noise = np.random.rand(3) + random.random()
        item["inputs"] = item["inputs"] + 0.1 * torch.from_numpy(noise).float()
        if torch.utils.data.get_worker_info() is not None:
            item["inputs"] = item["inputs"] + 0.1 * torch.rand(3)
        return item


class CountedScore(Hook):  # type: ignore[misc]
    """Puts a score into the metrics that depends on the weights."""

    priority = "HIGHEST"

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if metrics is not None:
            model = getattr(runner.model, "module", runner.model)
            metrics["mIoU"] = float(model.decode_head.query.weight.detach().sum())


def exact_runner(
    folder: Path,
    *,
    workers: int = 0,
    hooks: list[Any] | None = None,
    crash: int | None = None,
    every: int = 3,
    save_best: bool = True,
    data: ToyData | None = None,
    batch_size: int = 2,
    checkpoint_args: dict[str, Any] | None = None,
    sampler: type[StepSampler] = StepSampler,
    **options: Any,
) -> SegmentationRunner:
    data = data or AugmentedData()
    train = loader(batch_size=batch_size, data=data, sampler=sampler(data, seed=5))
    train.update(num_workers=workers, persistent_workers=workers > 0)
    own = [MASKS, CountedScore(), *(hooks or [])]
    if crash is not None:
        own.append(CrashBefore(crash))
    best = {"save_best": "mIoU", "rule": "greater"} if save_best else {}
    return runner(
        folder,
        train=train,
        batch_size=batch_size,
        hooks=own,
        model=options.pop("model", None) or DroppingSegmentor(),
        with_val=True,
        checkpoint={"interval": every, **best, **(checkpoint_args or {})},
        **options,
    )


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Places where two checkpoints differ in a single bit."""
    if any(name.endswith(clock) for clock in CLOCKS):
        return []
    if type(a) is not type(b):
        return [f"{name}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, Mapping):
        if list(a) != list(b):
            return [f"{name}: {list(a)} and {list(b)}"]
        return [line for key in a for line in differences(a[key], b[key], f"{name}[{key!r}]")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{name}: {len(a)} and {len(b)} items"]
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, (x, y) in pairs for line in differences(x, y, f"{name}[{i}]")]
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [f"{name}: other values"]
    return [] if a == b else [f"{name}: {a!r} and {b!r}"]


def compare(one: Path, other: Path) -> list[str]:
    """:func:`differences` of two training checkpoints."""
    loaded = [torch.load(path, weights_only=True) for path in (one, other)]
    return differences(*loaded)
