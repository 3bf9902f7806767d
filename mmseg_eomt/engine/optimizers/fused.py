"""Whether an optimiser may use its fused CUDA kernel."""

from __future__ import annotations

import inspect
from typing import Any

from mmseg.registry import OPTIMIZERS
from torch import nn


def with_fused(optimizer_cfg: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """``optimizer_cfg`` with ``fused=True`` where the optimiser and the device have it.

    A fused step is one kernel per group instead of several, and it can skip an update on the
    device, so a non-finite gradient is caught without waiting for the GPU.

    Args:
        optimizer_cfg (dict): Config of the optimiser. Its own ``fused`` or ``foreach`` wins.
        model (nn.Module): Whose parameters will be optimised.

    Returns:
        dict: A copy.
    """
    optimizer_cfg = dict(optimizer_cfg)
    if optimizer_cfg.get("fused") is not None or optimizer_cfg.get("foreach") is not None:
        return optimizer_cfg
    kind = optimizer_cfg["type"]
    optimizer_class = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if optimizer_class is None or "fused" not in inspect.signature(optimizer_class).parameters:
        return optimizer_cfg
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(p.is_cuda and p.is_floating_point() for p in trained):
        optimizer_cfg["fused"] = True
    return optimizer_cfg
