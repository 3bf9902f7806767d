"""A segmentor whose weights, gradients and optimiser state are spread over processes (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from mmseg_eomt.checkpoints.sharded import fill_shard
from mmseg_eomt.engine.sharding.deferred import DeferredWeights
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor


def is_sharded(model: Any) -> bool:
    """Whether a model has been through :func:`shard_segmentor`."""
    return isinstance(model, FSDPModule)


def shard_segmentor(
    model: EoMTSegmentor, weights: DeferredWeights, *, device: torch.device, precision: str
) -> None:
    """Spreads a segmentor over all processes, in place; each keeps its rows of every parameter.

    Each block of the backbone, joint ones included, is a unit: its parameters are gathered before
    it runs, in the precision of training, and dropped after it. Embeddings, the final norm and
    the head are one more unit, gathered in float32, as they are small. Gradients are summed in
    float32. Names of parameters stay as they are.

    Args:
        model (EoMTSegmentor): Built under ``deferred_weights``.
        weights (DeferredWeights): Of that.
        device (torch.device): Of this process.
        precision (str): 'fp32' or 'bf16'.

    Raises:
        ValueError: If a parameter's value is not known.
    """
    values = {name: _remembered(p, weights) for name, p in model.named_parameters()}
    _to_meta(model)
    # Of an instance, which comes before that of FSDP's class.
    model.__deepcopy__ = _copier(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    low = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.backbone.vit.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        if low is not None:
            _norm_in_float32(block)
        block.run_in_unit = MethodType(_in_unit(low), block)
        register_fsdp_forward_method(block, "run_in_unit")
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    # Dropped after the forward pass as well: whatever looks at parameters between steps, such as
    # the averaging of weights, then finds shards.
    fully_shard(model, mesh=mesh, mp_policy=whole, reshard_after_forward=True)
    buffers = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    model.to_empty(device=device)
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill_shard(parameter, values[name]())
    run_units(model)


def run_units(model: EoMTSegmentor) -> None:
    """Makes backbone and head run blocks as units; again after they were compiled."""
    model.backbone.run_block = _as_unit(model.backbone.run_block)
    model.decode_head.run_joint_block = _as_unit(model.decode_head.run_joint_block)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers all parameters once and keeps them inside the block, for inference.

    Images of different sizes take different numbers of forward passes, so processes that gather
    block by block would wait for each other for ever.
    """
    gather(model)
    try:
        yield
    finally:
        scatter(model)


def gather(model: nn.Module) -> None:
    """Begins :func:`whole_weights`; all processes call it together."""
    for unit in _units(model):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def scatter(model: nn.Module) -> None:
    """Ends :func:`whole_weights`."""
    for unit in _units(model):
        unit.reshard()
        unit.set_reshard_after_forward(True, recurse=False)


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _norm_in_float32(block: nn.Module) -> None:
    """Layer norms of a block compute in float32 with weights gathered in half precision.

    So does autocast on GPUs; on CPUs it leaves norms alone, which refuse inputs and weights of
    different types.
    """

    def forward(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
        return F.layer_norm(tokens.float(), norm.normalized_shape, weight, bias, norm.eps)

    for module in block.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]


def _in_unit(low: torch.dtype | None) -> Callable[..., Tensor]:
    """What a block does while its weights are gathered in ``low``."""

    def run_in_unit(
        block: nn.Module, run: Callable[..., Tensor], tokens: Tensor, **named: Any
    ) -> Tensor:
        if low is None:
            return run(block, tokens, **named)
        # Training has it on already; validation, which is in float32 elsewhere, has not.
        with torch.autocast(tokens.device.type, dtype=low):
            return run(block, tokens, **named)

    return run_in_unit


def _as_unit(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``run(block, ...)`` inside of the block's unit: FSDP watches methods, not functions."""

    def run_as_unit(block: Any, tokens: Tensor, **named: Any) -> Tensor:
        output: Tensor = block.run_in_unit(run, tokens, **named)
        return output

    return run_as_unit


def _remembered(parameter: nn.Parameter, weights: DeferredWeights) -> Callable[[], Tensor]:
    known = parameter.detach()
    return lambda: weights.value(known)


def _to_meta(model: nn.Module) -> None:
    """Parameters only: the values of buffers are needed, and small."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(
                    parameter.detach().to("meta"), requires_grad=parameter.requires_grad
                )


def _copier(model: nn.Module) -> Callable[[dict[int, Any]], nn.Module]:
    """What ``copy.deepcopy`` calls, which FSDP forbids: a plain module with copies of the shards.

    mmengine's EMAHook makes the averaged weights so.

    Args:
        model (nn.Module): All parameters on the meta device, not sharded yet.
    """
    blueprint = copy.deepcopy(model)

    def copied(memo: dict[int, Any]) -> nn.Module:
        other = copy.deepcopy(blueprint, memo)
        for name, parameter in model.named_parameters():
            owner, _, last = name.rpartition(".")
            own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            other.get_submodule(owner)._parameters[last] = own
        for mine, theirs in zip(other.modules(), model.modules(), strict=True):
            for name, buffer in theirs._buffers.items():
                mine._buffers[name] = None if buffer is None else buffer.detach().clone()
        return other

    return copied
