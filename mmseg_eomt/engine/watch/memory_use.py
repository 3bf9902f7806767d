"""Memory that a process has in use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

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
