"""Functions that keep less for the backward pass and make the rest again.

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
from torch.utils.checkpoint import checkpoint

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


def recomputed(function: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """Runs ``function(*inputs, **named)`` so that its activations are made again in backward.

    Args:
        function (Callable): Makes one tensor.
        inputs: Of the function.
        named: Of the function.

    Returns:
        Tensor: Of the function, with the same gradients as without recomputation.
    """
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, **named)
    return output


class RotatedHeads(torch.autograd.Function):
    """Norm and joint projection, whose result is rotated in place and split by views.

    The rotation is linear, so that nothing of it is kept: the backward pass turns the gradient
    back, in the buffer that the product reads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[int, int],
        rope: Tensor | None,
        again: Again,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *_: Tensor,
    ) -> tuple[Tensor, ...]:
        start, heads = layout
        ctx.start, ctx.again = start, again
        ctx.save_for_backward(tokens, weight, rope)
        packed = F.linear(again.make(tokens), weight, bias)
        packed = packed.view(*tokens.shape[:2], 3, heads, -1)
        if rope is not None:
            _rotate_(packed[:, start:, :2], rope, back=False)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, rope = ctx.saved_tensors
        batch, heads, length, dims = gradients[0].shape
        packed = gradients[0].new_empty(batch, length, 3, heads, dims)
        for index, gradient in enumerate(gradients):
            packed[:, :, index].copy_(gradient.transpose(1, 2))
        if rope is not None:
            _rotate_(packed[:, ctx.start :, :2], rope, back=True)
        needed = ctx.needs_input_grad[4:6]
        return None, None, *lean_gradients(ctx.again, tokens, weight, packed.flatten(2), needed)


def _rotate_(heads: Tensor, rope: Tensor, *, back: bool) -> None:
    """Rotates ``heads [B, N, 2, M, D]`` in place by ``rope [N, 2 * D]``, or by its transpose."""
    first, second = heads.chunk(2, dim=-1)
    sines, cosines = rope[:, None, None].chunk(2, dim=-1)  # [N, 1, 1, D] each
    sine1, sine2 = sines.chunk(2, dim=-1)
    cosine1, cosine2 = cosines.chunk(2, dim=-1)
    if back:
        sine1, sine2 = -sine2, -sine1
    if heads.dtype == rope.dtype:
        turned = first * cosine1
        turned.addcmul_(second, sine1, value=-1)
        second.mul_(cosine2).addcmul_(first, sine2)
        first.copy_(turned)
    else:  # tables are float32, and so is the rotation
        turned = first * cosine1 - second * sine1
        second.copy_(second * cosine2 + first * sine2)
        first.copy_(turned)


class MaskRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        places: tuple[Tensor, Tensor, int],
        queries: Tensor,
        again: Again,
        source: Tensor,
        *_: Tensor,
    ) -> Tensor:
        index, slots, ctx.num_slots = places
        ctx.again, ctx.dtype = again, logits.dtype
        ctx.save_for_backward(queries, index, slots, source)
        return logits.flatten(0, 1).index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, index, slots, source = ctx.saved_tensors
        batch, num_queries = queries.shape[:2]
        places = index // num_queries * ctx.num_slots + slots

        def padded(rows: Tensor) -> Tensor:
            """``[G, *]`` as ``[B, M, *]``, zero where an image has fewer."""
            rows = rows.to(ctx.dtype)
            empty = rows.new_zeros(batch * ctx.num_slots, rows.shape[1])
            return empty.index_copy_(0, places, rows).view(batch, ctx.num_slots, -1)

        to_maps = padded(gradient.flatten(1))  # [B, M, H * W]
        chosen = padded(queries.flatten(0, 1).index_select(0, index))  # [B, M, C]
        to_queries = torch.zeros_like(queries).flatten(0, 1)

        def to_features(features: Tensor) -> Tensor:
            pixels = features.flatten(1, 2).to(ctx.dtype)  # [B, H * W, C]
            to_chosen = (to_maps @ pixels).flatten(0, 1).index_select(0, places)  # [G, C]
            to_queries.index_copy_(0, index, to_chosen.to(queries.dtype))
            return (to_maps.transpose(1, 2) @ chosen).view(features.shape)

        to_sources = ctx.again.backward(source, to_features)
        return None, None, to_queries.view_as(queries), None, *to_sources


_ATEN = torch.ops.aten


class GeluDepthwise(torch.autograd.Function):
    """Keeps the cells and nothing else; the backward pass makes the image of them again.

    One more pass of GELU saves a quarter of what an upscale block would keep. Large buffers are
    written in place where that is possible: a fresh one costs a CPU more than what fills it.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(cells, weight)
        with torch.autocast(cells.device.type, enabled=False):
            mixed = F.conv2d(_gelu_image(cells), weight, padding=1, groups=cells.shape[-1])
        return mixed.permute(0, 2, 3, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        cells, weight = ctx.saved_tensors
        image = _gelu_image(cells)
        to_image, to_weight, _ = _ATEN.convolution_backward(
            gradient.permute(0, 3, 1, 2),
            image,
            weight,
            *(None, [1, 1], [1, 1], [1, 1], False, [0, 0], cells.shape[-1], [True, True, False]),
        )
        to_cells = image.permute(0, 2, 3, 1).view(cells.shape)  # its memory: it is not read again
        _ATEN.gelu_backward.grad_input(_as_cells(to_image), cells, grad_input=to_cells)
        return to_cells, to_weight


def _gelu_image(cells: Tensor) -> Tensor:
    """GELU of ``cells [B, h, w, 2, 2, C]`` as a channels-last image ``[B, C, 2h, 2w]``."""
    batch, height, width, _, _, channels = cells.shape
    image = cells.new_empty(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    _as_cells(image).copy_(cells)
    # In place. (Writing to the strided view at once is wrong on CPUs: oneDNN ignores its strides.)
    activated: Tensor = _ATEN.gelu_(image)
    return activated


def _as_cells(image: Tensor) -> Tensor:
    """A channels-last image ``[B, C, 2h, 2w]`` as a view ``[B, h, w, 2, 2, C]``."""
    batch, channels, height, width = image.shape
    rows = image.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    return rows.transpose(2, 3)


class ChosenValues(torch.autograd.Function):
    """Values of maps at chosen points of a pool that they have been sampled at already.

    Keeps nothing but the choice: 4 bytes a value, where ``grid_sample`` keeps maps and points.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, pool_values: Tensor, index: Tensor, pool: Tensor) -> Tensor:
        ctx.save_for_backward(index.int(), pool)
        ctx.shape = maps.shape
        return pool_values.gather(1, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, pool = ctx.saved_tensors
        count, height, width = ctx.shape
        grid = F.embedding(index, 2 * pool - 1)[:, :, None]  # [G, P, 1, 2]
        # The gradient to the maps is linear in them: only their shape is read.
        maps = gradient.new_zeros(()).expand(count, 1, height, width)
        to_maps, _ = torch.ops.aten.grid_sampler_2d_backward(
            gradient[:, None, :, None], maps, grid, 0, 0, False, [True, False]
        )
        return to_maps[:, 0], None, None, None
