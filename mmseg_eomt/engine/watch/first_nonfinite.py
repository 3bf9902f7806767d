"""Where the first value that is not finite came from: a step run again, observed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmseg_eomt.engine.mixed_precision import DTYPES
from mmseg_eomt.engine.random_state import kept_random_state, set_random_state
from mmseg_eomt.models.joint_attention import run_joint_block
from mmseg_eomt.models.upscale import mask_logits

# Memory that nobody has written to yet, in which anything may stand.
_UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "resize_")


@dataclass(frozen=True)
class Finding:
    """The first value that is not finite.

    Attributes:
        phase (str): 'weights' (a weight was not finite before the step), 'input', 'forward' or
            'backward'.
        module (str): Its module in the model; for a weight with the name of the weight.
        operator (str): torch's operator that made it; '' for weights and inputs.
        nan (int): How many values are NaN, ...
        infinite (int): ... how many infinite, ...
        size (int): ... and how many there are.
        micro_batch (int): Which micro-batch of the step, from 0; -1 for weights.
        rows (tuple[int, ...]): Images of the micro-batch that the values belong to, where the
            tensor has one row an image.
    """

    phase: str
    module: str
    operator: str
    nan: int
    infinite: int
    size: int
    micro_batch: int = -1
    rows: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "rows": list(self.rows)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """Of :meth:`as_dict`."""
        return cls(**{**values, "rows": tuple(values["rows"])})

    def __str__(self) -> str:
        counts = f"{self.nan} NaN and {self.infinite} infinite of {self.size} values"
        if self.phase == "weights":
            return f"the weight {self.module} was not finite before the step ({counts})"
        if self.phase == "input":
            return f"the images were not finite ({counts})"
        name = self.module or "the model"
        return f"in the {self.phase} pass of {name}, operator {self.operator} ({counts})"


class FirstNonFinite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the result of each operator and keeps the first that is not finite.

    It is the first operator that makes such a value from finite ones, or NaN from infinite ones.
    Infinities that code writes on purpose (masks) do not count.

    Args:
        model (nn.Module): Whose modules are named.
        images (int): Images of the micro-batch.
        micro_batch (int): Its number.
    """

    def __init__(self, model: nn.Module, *, images: int, micro_batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Finding | None = None
        self._images, self._micro_batch = images, micro_batch
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        # By storage, because parameters are also used as views of themselves.
        self._owners = {
            parameter.untyped_storage().data_ptr(): name.rpartition(".")[0]
            for name, parameter in model.named_parameters()
        }
        self._kept: list[Tensor] = []
        # Autograd numbers its nodes as they are made: these are the first of each stretch of the
        # forward pass that belongs to one module, so that the backward pass has names too.
        self._starts: list[int] = []
        self._labels: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.found is not None:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        writes = name in ("copy_", "fill_", "zero_") or "out" in kwargs
        inputs = [x for x in tree_leaves((args[1:] if writes else args, kwargs)) if _is_float(x)]
        before = _worst(inputs)  # an operator that works in place would spoil them
        on_purpose = any(
            isinstance(x, float) and not abs(x) < float("inf") for x in tree_leaves((args, kwargs))
        )
        result = func(*args, **kwargs)
        label, phase = self._label(inputs)
        if _is_float(result) and inputs and all(_key(x) in self._owners for x in inputs):
            # Made of weights alone (autocast's copy, layer scale): it belongs where the largest
            # does. It is kept, so that nothing else gets its address.
            largest = max(inputs, key=Tensor.numel)
            self._owners.setdefault(_key(result), self._owners[_key(largest)])
            self._kept.append(result)
        if name not in _UNWRITTEN and not on_purpose:
            for output in tree_leaves(result):
                if _is_float(output) and _worst([output]) > before:
                    self.found = _finding(
                        output, phase, label, str(func), self._micro_batch, self._images
                    )
                    break
        return result

    def _label(self, inputs: list[Tensor]) -> tuple[str, str]:
        """Module and phase of the operator that runs."""
        node = torch._C._current_autograd_node()
        if node is not None:
            place = bisect_right(self._starts, node._sequence_nr()) - 1
            return (self._labels[place] if place >= 0 else ""), "backward"
        owned = [self._owners[_key(x)] for x in inputs if _key(x) in self._owners]
        label = owned[0] if owned else (self._stack[-1] if self._stack else "")
        number = torch.autograd._get_sequence_nr() - 1
        if self._starts and self._starts[-1] >= number:
            self._labels[-1] = label
        else:
            self._starts.append(number)
            self._labels.append(label)
        return label, "forward"

    @contextmanager
    def naming(self, model: Any) -> Iterator[None]:
        """Follows which module runs. Blocks that are run by functions are named as well, and run
        without being compiled."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self._stack.append(self._names.get(id(module), ""))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._stack.pop()

        def block(block: nn.Module, *inputs: Any, **named: Any) -> Tensor:
            enter(block, inputs)
            try:
                return run_joint_block(block, *inputs, **named)
            finally:
                leave(block, inputs, None)

        places: list[tuple[Any, str, Callable[..., Any]]] = [
            (model.backbone, "run_block", block),
            (model.decode_head, "run_joint_block", block),
            (model.decode_head, "mask_logits", mask_logits),
        ]
        swapped = [(owner, name, new) for owner, name, new in places if hasattr(owner, name)]
        old = [getattr(owner, name) for owner, name, _ in swapped]
        hooks = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        for owner, name, new in swapped:
            setattr(owner, name, new)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for (owner, name, _), function in zip(swapped, old, strict=True):
                setattr(owner, name, function)


def non_finite_weight(model: nn.Module) -> Finding | None:
    """The first parameter or buffer of a model that is not finite."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        local = getattr(value, "to_local", lambda value=value: value)()  # a shard, if it is one
        if _is_float(local) and _worst([local]):
            return _finding(local.detach(), "weights", name, "", -1, 0)
    return None


def non_finite_input(inputs: Any, *, micro_batch: int) -> Finding | None:
    """The first image that is not finite; ``inputs`` as a data loader gives them."""
    for index, image in enumerate(inputs):
        if _is_float(image) and _worst([image]):
            found = _finding(image, "input", "", "", micro_batch, 0)
            return Finding(**{**asdict(found), "rows": (index,)})
    return None


def _finding(
    value: Tensor, phase: str, module: str, operator: str, micro_batch: int, images: int
) -> Finding:
    nan, infinite = value.isnan(), value.isinf()
    rows: tuple[int, ...] = ()
    if images and value.dim() and value.shape[0] == images:
        rows = tuple((nan | infinite).flatten(1).any(1).nonzero().flatten().tolist())
    return Finding(
        phase=phase,
        module=module,
        operator=operator,
        nan=int(nan.sum()),
        infinite=int(infinite.sum()),
        size=value.numel(),
        micro_batch=micro_batch,
        rows=rows,
    )


def _worst(values: list[Tensor]) -> int:
    """0 if all are finite, 1 if some are infinite, 2 if some are NaN."""
    worst = 0
    for value in values:
        if not bool(torch.isfinite(value).all()):
            worst = max(worst, 2 if bool(value.isnan().any()) else 1)
    return worst


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _key(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


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
