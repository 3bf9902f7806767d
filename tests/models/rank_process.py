"""What one process of the two-process test does; apart, so that it imports no oracle."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.step import StepRandom

RANDOM = StepRandom(seed=5, step=3)


def save_losses_of_rank(rank: int, port: int, folder: str) -> None:
    """Save the losses of two of the four images in ``folder`` as ``{rank}.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = torch.load(f"{folder}/data.pt")
    part = slice(2 * rank, 2 * rank + 2)
    predictions = [(m[part], c[part]) for m, c in data["predictions"]]
    loss = MaskClassificationLoss(7, num_points=100)
    losses = loss(predictions, data["labels"][part], random=RANDOM)
    torch.save(losses, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
