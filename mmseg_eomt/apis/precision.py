"""What `--amp` means on this machine."""

from __future__ import annotations

import torch


def mixed_precision() -> str:
    """Return 'fp16' on CUDA devices without native bfloat16, else 'bf16'."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
        return "fp16"
    return "bf16"
