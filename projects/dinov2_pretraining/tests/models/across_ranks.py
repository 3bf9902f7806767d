"""A step as one of several processes, and as one alone; run by `tests.ranks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from pretraining_toys import batch, tiny_model
from torch import Tensor, distributed


def one_step(centring: str, images: int) -> dict[str, Tensor]:
    """Losses, gradients averaged over all processes, and centres, after a step of all images."""
    rank, world = get_dist_info()
    own = images // world
    model: Any = tiny_model(centring=centring).train()
    data = batch(own, first=rank * own)
    losses = model(**model.data_preprocessor(data), mode="loss")
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    found = {name: value.detach().clone() for name, value in losses.items()}
    found |= {name: p.grad.clone() for name, p in model.student.named_parameters()}
    if world > 1:
        for value in found.values():
            distributed.all_reduce(value)
            value /= world
    model.update_teacher(0.9)
    return found | {f"centre{n}": centre.centre for n, centre in enumerate(model.centres)}


def save_step(centring: str, images: int, path: str) -> None:
    """The same as one of several processes; the first one writes it."""
    distributed.init_process_group("gloo")
    found = one_step(centring, images)
    if distributed.get_rank() == 0:
        torch.save(found, Path(path))
