"""Recomputation of activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """Runs ``function(*inputs, **named)`` so that its activations are made again in backward.

    Args:
        function (Callable): Makes one tensor.
        inputs: Of the function.
        named: Of the function.

    Returns:
        Tensor: Of the function, with the same gradients as without recomputation.
    """
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, **named)
    return output
