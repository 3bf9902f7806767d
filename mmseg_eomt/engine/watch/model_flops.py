"""Floating point operations that a segmentor's training asks for."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmseg_eomt.models.recompute import plain_layers


def training_flops(
    model_cfg: Mapping[str, Any], shape: tuple[int, int, int], *, trained: Mapping[str, bool]
) -> int:
    """Count forward and backward pass of one image; two operations a multiply-add.

    PyTorch counts them on the model of the config, built without memory: matrix products,
    attention and convolutions of all predictions. It is what the model asks for, not what an
    implementation spends: nothing is masked, nothing computed twice (``with_cp``), and loss,
    matching and optimiser are not in it.

    Args:
        model_cfg (dict): Of an ``EoMTSegmentor``.
        shape (tuple[int, int, int]): Channels, height and width of the image.
        trained (Mapping[str, bool]): By name, whether a parameter gets a gradient.

    Returns:
        int: Operations.
    """
    with torch.device("meta"):
        model: Any = MODELS.build(copy.deepcopy(dict(model_cfg)))
        images = torch.empty(1, *shape)
    model.train()
    model.backbone.with_cp = model.decode_head.recompute_upscale = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    model.decode_head.set_mask_probs([0.0] * model.decode_head.num_joint_blocks)
    # Fused kernels of attention have no form without memory, plain products have the same count.
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward},
    )
    with counter, sdpa_kernel(SDPBackend.MATH), plain_layers():
        predictions = model.decode_head.all_predictions(model.extract_feat(images))
        torch.autograd.backward([masks.sum() + classes.sum() for masks, classes in predictions])
    return int(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int],
    source: Sequence[int],
    weight: Sequence[int],
    *arguments: Any,
    **_named: Any,
) -> int:
    """As many as the forward pass for each of source and weight that needs a gradient.

    PyTorch's own formula (2.15) takes a depthwise convolution for a full one.
    """
    transposed, _padding, _groups, needed = arguments[-4:]
    places = math.prod((source if transposed else gradient)[2:])
    return 2 * int(gradient[0]) * places * math.prod(weight) * sum(map(int, needed[:2]))


def gradients_of(model: nn.Module) -> dict[str, bool]:
    """Which parameters of a model are trained."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}
