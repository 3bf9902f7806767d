"""Random numbers of a training step that depend on the step, not on who draws them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class StepRandom:
    """Stateless random numbers, keyed by seed, step and purpose.

    The same key gives the same numbers on every rank, on every device and after a resume, so a
    run does not depend on how its global batch is spread over processes. Numbers are drawn on
    the CPU (a few 10,000 a step) and sent to the device without waiting.

    Args:
        seed (int): Seed of the run.
        step (int): Optimiser step, counted from 0.
    """

    def __init__(self, *, seed: int = 0, step: int = 0) -> None:
        self.seed = seed
        self.step = step

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1).

        Args:
            purpose (str): What they are for. Equal purposes of one step get equal numbers.
            shape (int): Shape of the result.
            device (torch.device): Where the result lives. Defaults to ``'cpu'``.

        Returns:
            Tensor: ``float32`` of ``shape``.
        """
        key = hashlib.blake2b(f"{self.seed}/{self.step}/{purpose}".encode(), digest_size=8)
        generator = torch.Generator().manual_seed(int.from_bytes(key.digest(), "big") >> 1)
        numbers = torch.rand(shape, generator=generator)
        if torch.device(device).type == "cuda":
            return numbers.pin_memory().to(device, non_blocking=True)
        return numbers.to(device)
