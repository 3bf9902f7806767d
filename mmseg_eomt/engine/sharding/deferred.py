"""Models that are built without memory, and their weights, made one at a time.

A model of billions of parameters need not lie whole in the memory of any process. While it is
built, large parameters become meta tensors, and what the constructors do to them is written down:
which operation, and where the random generator stood. A value can then be made when it is wanted,
and it is the one, bit by bit, that an ordinary construction gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
