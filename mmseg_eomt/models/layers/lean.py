"""Linear layers that keep the input of the layer before them, and make their own input again.

A linear layer keeps its input for the backward pass. Where that is the GELU or the layer norm of
something that is kept anyway, these keep nothing more: one pass over memory makes it again. Same
values, same gradients.

Shape legend: C channels in, D channels out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_asked_for_plain = False


def plain_operators() -> bool:
    """Whether to use PyTorch's own layers: a compiler and an exporter know these and no others."""
    tracing = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return tracing or _asked_for_plain


@contextmanager
def plain_layers() -> Iterator[None]:
    """Uses PyTorch's own layers inside the block, whose passes can be counted."""
    global _asked_for_plain
    before, _asked_for_plain = _asked_for_plain, True
    try:
        yield
    finally:
        _asked_for_plain = before


def exporting() -> bool:
    """Whether `torch.export` is at work."""
    # Younger than the oldest torch that is supported.
    return bool(getattr(torch.compiler, "is_exporting", bool)())


class Again:
    """How a tensor is made from another, to be done again in the backward pass.

    Args:
        make (Callable): Makes it, the same each time.
        parameters (Iterable[Tensor]): What ``make`` takes besides its argument.
        device (str): Type of the device, whose autocast state is kept.
    """

    def __init__(
        self, make: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], device: str
    ) -> None:
        self.make = make
        self.parameters = [p for p in parameters if p.requires_grad]
        enabled = torch.is_autocast_enabled(device)
        self._autocast = (device, torch.get_autocast_dtype(device), enabled)

    def backward(
        self, source: Tensor, gradient_of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``source`` and ``parameters``.

        Args:
            source (Tensor): What it was made of.
            gradient_of (Callable): Gives the gradient of what was made, which it is handed.
        """
        device, dtype, enabled = self._autocast
        with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
            source = source.detach().requires_grad_()
            made = self.make(source)
        gradient = gradient_of(made.detach()).to(made.dtype)
        return torch.autograd.grad(made, (source, *self.parameters), gradient)


def gelu_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(gelu(hidden), weight, bias)`` that keeps ``hidden [..., C]`` alone."""
    if plain_operators():
        return F.linear(F.gelu(hidden), weight, bias)
    return _lean_linear(F.gelu, (), hidden, weight, bias)


def norm_linear(hidden: Tensor, norm: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(norm(hidden), weight, bias)`` that keeps ``hidden [..., C]`` alone.

    Args:
        hidden (Tensor): ``[..., C]``.
        norm (nn.Module): Without randomness and buffers.
        weight (Tensor): ``[D, C]``.
        bias (Tensor, optional): ``[D]``.

    Returns:
        Tensor: ``[..., D]``.
    """
    if plain_operators():
        return F.linear(norm(hidden), weight, bias)
    return _lean_linear(norm, norm.parameters(), hidden, weight, bias)


def _lean_linear(
    make: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    again = Again(make, parameters, source.device.type)
    weight, bias = in_autocast_dtype(source.device.type, weight, bias)
    output: Tensor = _LeanLinear.apply(again, source, weight, bias, *again.parameters)
    return output


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, again: Again, source: Tensor, weight: Tensor, bias: Tensor | None, *_: Tensor
    ) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(source, weight)
        return F.linear(again.make(source), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        source, weight = ctx.saved_tensors
        return lean_gradients(ctx.again, source, weight, gradient, ctx.needs_input_grad[2:4])


def lean_gradients(
    again: Again, source: Tensor, weight: Tensor, gradient: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``F.linear(again.make(source), weight, bias)``.

    Args:
        again (Again): Makes the input of the linear layer.
        source (Tensor): ``[..., C]``, what it is made of.
        weight (Tensor): ``[D, C]``.
        gradient (Tensor): ``[..., D]``, of the output.
        needed (Sequence[bool]): Whether weight and bias need theirs.

    Returns:
        tuple[Tensor | None, ...]: None (for ``again``), then of source, weight, bias and of the
        parameters of ``again``.
    """
    rows = gradient.reshape(-1, gradient.shape[-1])
    to_weight: list[Tensor | None] = [None]

    def to_inputs(inputs: Tensor) -> Tensor:
        if needed[0]:
            to_weight[0] = rows.t() @ inputs.reshape(-1, inputs.shape[-1]).to(rows.dtype)
        return (rows @ weight).view(inputs.shape)

    to_source, *to_parameters = again.backward(source, to_inputs)
    return None, to_source, to_weight[0], rows.sum(0) if needed[1] else None, *to_parameters


def in_autocast_dtype(device: str, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
    """``weight`` and ``bias`` in the dtype in which autocast would use them."""
    if not torch.is_autocast_enabled(device):
        return weight, bias
    dtype = torch.get_autocast_dtype(device)
    return weight.to(dtype), None if bias is None else bias.to(dtype)
