"""What a process of an FSDP2 run keeps in memory, counted from the shapes of the parameters.

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

import math
from dataclasses import dataclass

from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor

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
