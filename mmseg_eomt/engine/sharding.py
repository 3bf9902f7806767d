"""FSDP2: units of a segmentor, first weights without a whole model, state dicts of own parts.

A model of billions of parameters need not lie whole in the memory of any process. While it is
built, large parameters become meta tensors, and what the constructors do to them is written down:
which operation, and where the random generator stood. A value can then be made when it is wanted,
and it is the one, bit by bit, that an ordinary construction gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.sharded import (
    StoredTensor,
    fill_shard,
    like_shard,
    load_stored,
    local_part,
    map_tensors,
)
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


# Numbers; what is smaller costs nothing and stays as it is.
LARGE = 1 << 12

_Operation = tuple[Any, tuple[Any, ...], dict[str, Any], Tensor | None]


class _Recipe:
    """How the value of one parameter comes about."""

    def __init__(self, start: Tensor) -> None:
        self.size, self.dtype = start.shape, start.dtype
        # Of `torch.empty`: memory that nobody has touched takes none.
        self.start: Tensor | None = start
        self.operations: list[_Operation] = []

    def make(self) -> Tensor:
        kept = torch.get_rng_state()
        try:
            with torch.no_grad():
                value = torch.empty(self.size, dtype=self.dtype)
                if self.start is not None:
                    value.copy_(self.start)
                for function, arguments, named, generator in self.operations:
                    if generator is not None:
                        torch.set_rng_state(generator)
                    function(value, *arguments, **named)
        finally:
            torch.set_rng_state(kept)
        return value


class DeferredWeights:
    """Values of the parameters of models that were built under :func:`deferred_weights`."""

    def __init__(self) -> None:
        # By storage, which all aliases of a parameter share (`parameter.data`); held, so that no
        # other tensor gets its address.
        self._recipes: dict[int, tuple[Tensor, _Recipe]] = {}

    def take(self, value: Tensor) -> Tensor:
        """A meta tensor in place of ``value``."""
        empty = torch.empty_like(value, device="meta")
        self._recipes[_address(empty)] = (empty, _Recipe(value))
        return empty

    def recipe_of(self, value: Any) -> _Recipe | None:
        """How a tensor comes about; None if it is no deferred one."""
        if not isinstance(value, Tensor) or not value.is_meta:
            return None
        found = self._recipes.get(_address(value))
        return None if found is None else found[1]

    def value(self, parameter: Tensor) -> Tensor:
        """The value, made now if it was deferred; nothing keeps it.

        Args:
            parameter (Tensor): Of a model built under :func:`deferred_weights`.

        Raises:
            ValueError: If it is a meta tensor of another origin.
        """
        recipe = self.recipe_of(parameter)
        if recipe is not None:
            return recipe.make()
        if parameter.is_meta:
            raise ValueError(
                f"A parameter of shape {tuple(parameter.shape)} was made on the meta device by "
                "the model itself, so its value is not known."
            )
        return parameter.detach()


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what happens to deferred parameters, and moves the generator on as it would."""

    def __init__(self, weights: DeferredWeights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        # One for all draws: of memory that is taken and given back glibc keeps as much as the
        # whole model has.
        self._scratch = torch.empty(0)

    def _as_large_as(self, recipe: _Recipe) -> Tensor:
        numbers = recipe.size.numel()
        if self._scratch.numel() < numbers or self._scratch.dtype != recipe.dtype:
            self._scratch = torch.empty(numbers, dtype=recipe.dtype)
        return self._scratch[:numbers].view(recipe.size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        recipe = self._weights.recipe_of(args[0]) if args else None
        if recipe is None or func is torch.ops.aten.detach.default:
            return func(*args, **kwargs)
        if not func._schema.is_mutable or args[0].shape != recipe.size:
            raise NotImplementedError(
                f"{func} reads a weight of shape {tuple(recipe.size)}, or writes a part of it, "
                "while the model is built, which cannot be deferred: train this model without "
                "strategy."
            )
        generator = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator = torch.get_rng_state()
            func(self._as_large_as(recipe), *args[1:], **kwargs)
        if func._schema.name in _OVERWRITES:
            recipe.start, recipe.operations = None, []
        recipe.operations.append((func, args[1:], kwargs, generator))
        return args[0]


_OVERWRITES = ("aten::uniform_", "aten::normal_", "aten::zero_", "aten::fill_", "aten::copy_")


@contextmanager
def deferred_weights() -> Iterator[DeferredWeights]:
    """Defers the large parameters of all models that are built inside, on the CPU.

    The random generator is left where an ordinary construction leaves it, so that what is drawn
    afterwards is the same too.

    Yields:
        DeferredWeights: Where their values are to be had.
    """
    weights = DeferredWeights()
    register: Callable[..., None] = nn.Module.register_parameter

    def register_deferred(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is None or param.is_meta or param.numel() < LARGE:
            return
        value = weights.take(param.detach())
        self._parameters[name] = nn.Parameter(value, requires_grad=param.requires_grad)

    nn.Module.register_parameter = register_deferred  # type: ignore[method-assign]
    try:
        with _Recording(weights):
            yield weights
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _address(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def own_parts(runner: Any, checkpoint: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Turn the tensors of a checkpoint, however many processes wrote it, into those of a run.

    Tensors in shards are read, whole ones are cut to the rows of this process if the run's model
    is spread. All processes call it together.

    Args:
        runner: With model and optimiser built.
        checkpoint: Of ``read_resumable``.
        source: Its name for messages.

    Returns:
        dict: The same with tensors and shards only.

    Raises:
        ValueError: If a tensor is not of the model, a file is damaged, or a weight is NaN.
    """
    weights: dict[str, Tensor] = unwrap(runner.model).state_dict()
    trained = [p for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]]
    wanted: dict[StoredTensor, Tensor] = {}

    def own(keys: tuple[Any, ...], value: Tensor | StoredTensor) -> Tensor:
        like = _counterpart(keys, weights, trained)
        if like is None or like.shape != value.shape:
            if isinstance(value, Tensor):
                return value  # the strict load says what does not fit
            raise ValueError(
                f"{source}: {'.'.join(map(str, keys))} {tuple(value.shape)} is not of this run's "
                "model: train with the config that wrote it."
            )
        if isinstance(value, Tensor):
            return like_shard(value, like)
        wanted[value] = torch.empty_like(like, dtype=value.dtype, requires_grad=False)
        return wanted[value]

    owned: dict[str, Any] = map_tensors(checkpoint, own)
    if wanted:
        load_stored(source, wanted)
        _refuse_nan(wanted, source)
    return owned


def _counterpart(
    keys: tuple[Any, ...], weights: Mapping[str, Tensor], trained: list[Tensor]
) -> Tensor | None:
    """What in the run is spread as the tensor at ``keys`` of a checkpoint has to be."""
    if keys[0] in ("state_dict", "ema_state_dict"):
        return weights.get(str(keys[1]).removeprefix("module."))
    if keys[:2] == ("optimizer", "state") and int(keys[2]) < len(trained):
        return trained[int(keys[2])].detach()
    return None


def _refuse_nan(read: Mapping[StoredTensor, Tensor], source: str) -> None:
    """As with other checkpoints, but each process has seen its own rows only."""
    floats = [(s, t) for s, t in read.items() if t.is_floating_point()]
    broken = torch.tensor([bool(local_part(value).isnan().any()) for _, value in floats]).float()
    all_reduce(broken, op="max")
    names = [stored.name for (stored, _), bad in zip(floats, broken.tolist(), strict=True) if bad]
    if names:
        raise ValueError(
            f"{source}: cannot be resumed: {len(names)} of its tensors have NaN, the first is "
            f"{names[0]}. Resume from an earlier checkpoint."
        )
