"""Shared by all tests: mmseg_eomt first, so that its compat module acts before mmseg loads."""

from __future__ import annotations

import os

# Small tensors run fastest on one thread, and parallel test workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import mmseg_eomt  # noqa: F401  (registers the components)
import tests.plain_configs  # noqa: F401  (saves most of the time of a tiny run)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
