"""How a global batch is spread over processes and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class BatchPlan:
    """A global batch in ``world_size * accumulate`` micro-batches.

    Args:
        global_batch_size (int): Images an optimiser step.
        world_size (int): Processes.
        micro_batch_size (int): Images a forward and process.
        accumulate (int): Forwards an optimiser step and process.
    """

    global_batch_size: int
    world_size: int
    micro_batch_size: int
    accumulate: int


def plan_batches(global_batch_size: int, *, world_size: int, batch_size: int) -> BatchPlan:
    """The fewest equal micro-batches of at most ``batch_size`` images.

    Args:
        global_batch_size (int): Images an optimiser step.
        world_size (int): Processes.
        batch_size (int): The most images a process can take at once.

    Raises:
        ValueError: If the images cannot be spread evenly.
    """
    for name, value in (
        ("train_cfg.global_batch_size", global_batch_size),
        ("train_dataloader.batch_size", batch_size),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a positive int.")
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise ValueError(
            f"train_cfg.global_batch_size {global_batch_size} cannot be shared by {world_size} "
            f"processes: make it a multiple of {world_size}."
        )
    micro = min(batch_size, share)
    accumulate, rest = divmod(share, micro)
    if rest:
        fits = [size for size in range(1, micro + 1) if share % size == 0]
        raise ValueError(
            f"Each process has {share} images a step (train_cfg.global_batch_size "
            f"{global_batch_size} over {world_size} processes), which is no multiple of "
            f"train_dataloader.batch_size {batch_size}: set it to one of {fits}."
        )
    return BatchPlan(global_batch_size, world_size, micro, accumulate)


def merge_batches(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One data batch out of micro-batches, as hooks see it: lists, tensors and dicts are joined."""
    if len(batches) == 1:
        return batches[0]
    merged: dict[str, Any] = {}
    for key in batches[0]:
        values = [batch[key] for batch in batches]
        if isinstance(values[0], torch.Tensor):
            merged[key] = torch.cat(values)
        elif isinstance(values[0], dict):
            merged[key] = merge_batches(values)
        else:
            merged[key] = [item for value in values for item in value]
    return merged
