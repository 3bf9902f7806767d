"""The tensors of a training checkpoint as this run holds them: whole, or the rows of a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.sharded import (
    StoredTensor,
    like_shard,
    load_stored,
    local_part,
    map_tensors,
)


def own_parts(runner: Any, checkpoint: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Turn the tensors of a checkpoint, however many processes wrote it, into those of a run.

    Tensors in shards are read, whole ones are cut to the rows of this process if the run's model
    is spread. All processes call it together.

    Args:
        runner: With model and optimiser built.
        checkpoint: Of ``read_resumable``.
        source: Its name for messages.

    Returns:
        dict: The same with tensors and shards only.

    Raises:
        ValueError: If a tensor is not of the model, a file is damaged, or a weight is NaN.
    """
    weights: dict[str, Tensor] = unwrap(runner.model).state_dict()
    trained = [p for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]]
    wanted: dict[StoredTensor, Tensor] = {}

    def own(keys: tuple[Any, ...], value: Tensor | StoredTensor) -> Tensor:
        like = _counterpart(keys, weights, trained)
        if like is None or like.shape != value.shape:
            if isinstance(value, Tensor):
                return value  # the strict load says what does not fit
            raise ValueError(
                f"{source}: {'.'.join(map(str, keys))} {tuple(value.shape)} is not of this run's "
                "model: train with the config that wrote it."
            )
        if isinstance(value, Tensor):
            return like_shard(value, like)
        wanted[value] = torch.empty_like(like, dtype=value.dtype, requires_grad=False)
        return wanted[value]

    owned: dict[str, Any] = map_tensors(checkpoint, own)
    if wanted:
        load_stored(source, wanted)
        _refuse_nan(wanted, source)
    return owned


def _counterpart(
    keys: tuple[Any, ...], weights: Mapping[str, Tensor], trained: list[Tensor]
) -> Tensor | None:
    """What in the run is spread as the tensor at ``keys`` of a checkpoint has to be."""
    if keys[0] in ("state_dict", "ema_state_dict"):
        return weights.get(str(keys[1]).removeprefix("module."))
    if keys[:2] == ("optimizer", "state") and int(keys[2]) < len(trained):
        return trained[int(keys[2])].detach()
    return None


def _refuse_nan(read: Mapping[StoredTensor, Tensor], source: str) -> None:
    """As with other checkpoints, but each process has seen its own rows only."""
    floats = [(s, t) for s, t in read.items() if t.is_floating_point()]
    broken = torch.tensor([bool(local_part(value).isnan().any()) for _, value in floats]).float()
    all_reduce(broken, op="max")
    names = [stored.name for (stored, _), bad in zip(floats, broken.tolist(), strict=True) if bad]
    if names:
        raise ValueError(
            f"{source}: cannot be resumed: {len(names)} of its tensors have NaN, the first is "
            f"{names[0]}. Resume from an earlier checkpoint."
        )
