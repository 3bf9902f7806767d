"""Tensors of which each process holds some rows (DTensor), and whole ones in exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def has_shards(state: Mapping[str, Any]) -> bool:
    """Whether any tensor of a state dict is one that processes share."""
    return any(isinstance(value, DTensor) for value in state.values())


def fill_shard(target: Tensor, value: Tensor) -> None:
    """Copies into ``target`` the part of ``value`` that belongs there, without communication.

    Args:
        target (Tensor): A shard, or a whole tensor.
        value (Tensor): The whole tensor, equal on all processes; or one like ``target``.
    """
    if isinstance(target, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(
            value.detach(), target.device_mesh, target.placements, src_data_rank=None
        )
    target.detach().copy_(value)


def like_shard(value: Tensor, target: Tensor) -> Tensor:
    """``value`` as ``target`` is held: the rows of this process where that is a shard."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    own = torch.empty_like(target)
    fill_shard(own, value)
    return own


def whole(value: Any) -> Any:
    """The whole tensor of a shard, gathered from all processes; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
