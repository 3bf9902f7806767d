"""A training step run again under observation, without moving anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmseg_eomt.engine.optimizers.mixed_precision import DTYPES
from mmseg_eomt.engine.runner.random_state import kept_random_state, set_random_state
from mmseg_eomt.engine.watch.first_nonfinite import (
    Finding,
    FirstNonFinite,
    non_finite_input,
    non_finite_weight,
)


@dataclass(frozen=True)
class StepInputs:
    """What a step was computed from, beside the weights.

    Attributes:
        step (int): Its number, from 0.
        seed (int): Of the run.
        batches (Sequence[dict]): Its micro-batches, as the data loader made them.
        random (Mapping): ``random_state()`` before its first forward pass.
        mask_probs (Sequence[float]): Of the head.
    """

    step: int
    seed: int
    batches: Sequence[dict[str, Any]]
    random: Mapping[str, Any]
    mask_probs: Sequence[float]


def trace_step(
    model: nn.Module,
    inputs: StepInputs,
    *,
    precision: str,
    loss_scale: float = 1.0,
    totals: torch.Tensor | None = None,
) -> Finding | None:
    """Runs forward and backward passes of a step and finds the first value that is not finite.

    Random generators get back the state they had; gradients are gone afterwards. Where the loss
    has collective parts, all processes call it together.

    Args:
        model (nn.Module): The segmentor, not wrapped, with the weights of the step.
        inputs (StepInputs): Of the step.
        precision (str): 'fp32', 'bf16' or 'fp16'.
        loss_scale (float): Of fp16. Defaults to 1.
        totals (Tensor, optional): Loss denominators ``[2]`` of the step. Defaults to None: they
            are counted, over all processes.

    Returns:
        Finding | None: None if everything was finite.
    """
    segmentor: Any = model
    head = segmentor.decode_head
    found = non_finite_weight(segmentor)
    with kept_random_state():
        set_random_state(inputs.random)
        segmentor.zero_grad(set_to_none=True)
        segmentor.train()
        head.set_mask_probs(inputs.mask_probs)
        head.set_step(inputs.step, inputs.seed)
        if totals is not None:
            head.set_totals(totals)
        else:
            segmentor.prepare_accumulation(inputs.batches)
        # To the end even if something was found: other processes may do the same in step with us.
        for number, batch in enumerate(inputs.batches):
            finding = _trace(segmentor, batch, number, precision, loss_scale)
            found = found or finding
        segmentor.zero_grad(set_to_none=True)
    return found


def _trace(
    segmentor: Any, batch: dict[str, Any], number: int, precision: str, loss_scale: float
) -> Finding | None:
    device = next(segmentor.parameters()).device.type
    dtype = DTYPES.get(precision)
    images = len(batch["inputs"])
    mode = FirstNonFinite(segmentor, images=images, micro_batch=number)
    found = non_finite_input(batch["inputs"], micro_batch=number)
    with mode.naming(segmentor), mode:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            losses = segmentor(**segmentor.data_preprocessor(batch, True), mode="loss")
        loss, _ = segmentor.parse_losses(losses)
        (loss * loss_scale).backward()
    return found or mode.found
