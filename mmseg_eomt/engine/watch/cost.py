"""What a step costs by calculation: operations, memory per process, a device's peak.

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
import re
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


# Dense TFLOP/s with sums in float32, which is how PyTorch multiplies matrices; sheets often print
# those with sparsity, which are twice as many. Names are those the driver tells, matched whole:
# slices (MIG), laptop and export versions are other devices.
# Sources: nvidia.com/en-us/data-center/{h100,h200,a100,a10,a30,a40,l4,l40,l40s,v100,tesla-t4}
# and the data sheets of RTX A6000 and RTX 6000 Ada; of GeForce the architecture's white paper
# (GA102, appendix A; Ada, appendix A).
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"H100 80GB HBM3|H200|GH200 \d+GB", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H[12]00 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    (r"H100 PCIe", {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (
        r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe",
        {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    ),
    (r"A10", {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2}),
    (r"A30", {"bf16": 165.0, "tf32": 82.0, "fp32": 10.3}),
    (r"A40", {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"L4", {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    (r"L40", {"bf16": 181.0, "tf32": 90.5, "fp32": 90.5}),
    (r"L40S", {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6}),
    (r"RTX A6000", {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"RTX 6000 Ada Generation", {"bf16": 364.2, "tf32": 182.1, "fp32": 91.1}),
    (r"GeForce RTX 3090", {"bf16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"GeForce RTX 4090", {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    # Before Ampere there is neither bf16 nor tf32.
    (r"V100-SXM2-\d+GB", {"fp16": 125.0, "fp32": 15.7}),
    (r"V100-PCIE-\d+GB", {"fp16": 112.0, "fp32": 14.0}),
    (r"T4", {"fp16": 65.0, "fp32": 8.1}),
)


def peak_tflops(name: str, precision: str) -> float | None:
    """The most TFLOP/s of a device.

    Args:
        name (str): As ``torch.cuda.get_device_name`` gives it.
        precision (str): 'bf16', 'fp16', 'tf32' or 'fp32'.

    Returns:
        float: None if the table does not have the device or the precision.
    """
    for pattern, peaks in _PEAKS:
        if re.fullmatch(rf"(?:NVIDIA |Tesla )*(?:{pattern})", name):
            # From Ampere on both have the same rate.
            return peaks.get(precision, peaks.get("bf16") if precision == "fp16" else None)
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """:func:`peak_tflops` of this process's device; None for anything that is no CUDA device.

    Args:
        device (torch.device): Where the model is.
        precision (str): Of training: 'bf16', 'fp16' or 'fp32', which is tf32 where PyTorch may
            use it.
    """
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return peak_tflops(torch.cuda.get_device_name(device), precision)


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
