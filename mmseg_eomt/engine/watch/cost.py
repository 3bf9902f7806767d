"""What a step costs by calculation: operations, and memory per process.

Over N processes, with AdamW and block checkpointing (``with_cp=True``):

==================  ============================================================================
shards              4 bytes a weight, and for each trained one 4 of gradient and 8 of AdamW, of
                    the rows of this process: ``ceil(rows / N)`` of every parameter. An EMA of the
                    weights takes 4 more for each weight
gathered            the weights of two blocks in the precision of training (the one that runs and
                    the one fetched ahead), gradients of one in that precision and in float32 (to
                    be summed); weights and gradients of embeddings and head in float32
kept activations    the tokens before each block, of every image
==================  ============================================================================

One process gathers nothing, but autocast keeps copies of weights in bfloat16, 2 bytes each.
Not counted, as they depend on the kernels: what one block and the head need while they run, the
allocator's rounding, CUDA and NCCL themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
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


_FLOAT = 4
_ADAMW = 8
_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process.

    Attributes:
        shards: Weights, gradients, optimiser state and averaged weights when the optimiser steps.
        gathered: What comes on top while a block runs backwards.
        activations: Tokens that are kept from the forward pass.
    """

    shards: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.shards + self.gathered + self.activations


def memory_of_process(
    model: EoMTSegmentor,
    *,
    world_size: int,
    precision: str = "bf16",
    tokens: int = 0,
    ema: bool = False,
) -> ProcessMemory:
    """Count what the first process, which has the most rows, keeps.

    Args:
        model (EoMTSegmentor): Not spread; parameters may be on the meta device.
        world_size (int): Processes; with one nothing is spread, and nothing gathered.
        precision (str): 'fp32' or 'bf16'.
        tokens (int): Of all images that the process takes at once: (patches + registers + class
            token + queries) x images. Defaults to 0, no activations.
        ema (bool): Whether averaged weights are kept. Defaults to False.

    Raises:
        KeyError: If ``precision`` is another one.
    """
    shards = 0
    for parameter in model.parameters():
        rows = parameter.shape[0] if parameter.ndim else 1
        own = math.ceil(rows / world_size) * (parameter.numel() // max(rows, 1))
        kept = _FLOAT + (_FLOAT if ema else 0)
        shards += own * (kept + (_FLOAT + _ADAMW if parameter.requires_grad else 0))
    blocks = list(model.backbone.vit.blocks)
    width = blocks[0].norm1.weight.shape[0]
    low = _BYTES[precision]
    activations = len(blocks) * tokens * width * low
    if world_size == 1:
        return ProcessMemory(shards, 0, activations)
    of_blocks = [sum(p.numel() for p in block.parameters()) for block in blocks]
    largest = max(of_blocks)
    rest = sum(p.numel() for p in model.parameters()) - sum(of_blocks)
    gathered = largest * (2 * low + low + _FLOAT) + rest * 2 * _FLOAT
    return ProcessMemory(shards, gathered, activations)
