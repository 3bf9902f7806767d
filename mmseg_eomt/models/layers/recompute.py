"""Recomputation of activations in the backward pass, in full or of what is cheap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_ATEN = torch.ops.aten
# Where nearly all of a block's time goes: their results are kept in the mode 'elementwise'.
_PRODUCTS = [
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
]


def recomputed(
    function: Callable[..., Tensor], *inputs: Any, mode: bool | str, **named: Any
) -> Tensor:
    """Runs ``function(*inputs, **named)`` so that activations are made again in backward.

    Args:
        function (Callable): Makes one tensor.
        inputs: Of the function.
        mode (bool | str): True makes all of it again; ``'elementwise'`` keeps the results of
            matrix products and attention and makes again what lies between them.
        named: Of the function.

    Returns:
        Tensor: Of the function, with the same gradients as without recomputation.
    """
    if mode == "elementwise":
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        named["context_fn"] = contexts
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, **named)
    return output


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = operator in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
