"""The random generators of a process as plain data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """States of torch's (CPU and this process's CUDA device), NumPy's and Python's generators."""
    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    if kind != "MT19937":
        raise ValueError(
            f"NumPy's global generator is {kind}; only MT19937, its default, can be resumed."
        )
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.from_numpy(np.array(words)), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(np.asarray(key).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue where :func:`random_state` was taken.

    Args:
        state: Its result. A CUDA state is left out where there is no CUDA.
    """
    torch.set_rng_state(state["torch"].to(torch.uint8).cpu())
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(
        (
            "MT19937",
            numpy["key"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached"],
        )
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].to(torch.uint8).cpu())


def seed_process(*, seed: int, step: int, rank: int) -> None:
    """Seed all generators of a process from where it stands in a run."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(6)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2:5])
    random.seed(int(words[5]))


@contextmanager
def kept_random_state() -> Iterator[dict[str, Any]]:
    """Leave the generators as they were before the block, so that it has no effect on training.

    Yields:
        Their state before the block, which they get back.
    """
    state = random_state()
    try:
        yield state
    finally:
        set_random_state(state)
