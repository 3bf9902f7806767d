"""Precision of a training step, and losses and gradients that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from mmseg_eomt.checkpoints.sharded import whole


class NonFiniteError(FloatingPointError):
    """A loss or gradient is infinite or not a number.

    Args:
        message (str): What was found.
        step (int, optional): Optimiser step, from 0, that moved nothing because of it.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class LateFlag:
    """A flag of a device on its way to the host.

    Reading it at once would make the host wait for all that the device still has to do. Read a
    step later it has long arrived.

    Args:
        flag (Tensor): Boolean scalar.
        value (Tensor): Scalar to show if the flag is set.
        step (int, optional): Step it belongs to.
    """

    def __init__(self, flag: Tensor, value: Tensor, *, step: int | None) -> None:
        self.step = step
        self._value = value.detach()
        self._event: torch.cuda.Event | None = None
        if flag.device.type == "cuda":
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._host.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = flag.clone()

    def check(self) -> None:
        """Raises if the flag is set.

        Raises:
            NonFiniteError: With its step.
        """
        if self._event is not None:
            self._event.synchronize()
        if bool(self._host):
            raise non_finite_error(self._value, step=self.step)


def non_finite_error(norm: Tensor, *, step: int | None) -> NonFiniteError:
    """The error about a step whose gradient norm is ``norm``, a scalar."""
    return NonFiniteError(
        f"The loss or its gradient is not finite (gradient norm {float(norm)}).", step=step
    )


PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """'auto' as a precision: bf16 where the CUDA device computes it natively, else fp32.

    Args:
        precision (str): One of ``PRECISIONS``.
        device (torch.device): Where training runs.

    Raises:
        ValueError: If ``precision`` is none of them.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"optim_wrapper.precision is {precision!r}: it must be one of {PRECISIONS}."
        )
    if precision != "auto":
        return precision
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return "bf16" if native else "fp32"


@OPTIM_WRAPPERS.register_module()
class MixedPrecisionOptimWrapper(OptimWrapper):  # type: ignore[misc]
    """Autocast on CUDA and CPU, loss scaling for fp16 only, clipping that never waits.

    mmengine's ``AmpOptimWrapper`` refuses a CPU and its clipping reads the norm back every step.
    Here the norm stays on the device in :attr:`grad_norm`; whoever logs it reads it.

    A step whose loss or gradient is not finite, on any process, changes no parameter and is an
    error on all of them. A loss that is not finite makes its gradients NaN, so that their exchange
    carries the news. On CUDA a fused optimiser skips the step on the device and the error comes
    with the next step, so that nothing waits; elsewhere it comes at once. With fp16 the loss scaler
    skips steps with a non-finite gradient and lowers its scale, as usual; an error is a loss that
    is not finite, or a gradient that is not even where the scale is 1 or less.

    Args:
        optimizer (Optimizer): The optimiser.
        precision (str): 'auto', 'fp32', 'bf16' or 'fp16'. Defaults to 'auto'.
        clip_grad (dict, optional): ``max_norm`` and other arguments of
            ``torch.nn.utils.clip_grad_norm_``; None leaves gradients as they are. Defaults to
            ``dict(max_norm=0.01)``, EoMT's.
        loss_scale (dict, optional): Arguments of ``torch.amp.GradScaler`` for fp16. Defaults to
            None, its own.
        stop_on_nonfinite (bool): Whether losses and gradients are checked. Without it, steps are
            made of whatever they are. Defaults to True.
        accumulative_counts (int): Micro-batches a step. ``SegmentationRunner`` sets it.

    Raises:
        ValueError: If ``precision`` or ``clip_grad`` is not as above.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        precision: str = "auto",
        clip_grad: dict[str, Any] | None = {"max_norm": 0.01},  # noqa: B006 (only read)
        loss_scale: dict[str, Any] | None = None,
        stop_on_nonfinite: bool = True,
        accumulative_counts: int = 1,
    ) -> None:
        super().__init__(optimizer, accumulative_counts=accumulative_counts)
        # The base class keeps a pseudo group for logging a base rate. Its rate is scaled by
        # nobody and shown to users as if it were true, so it goes.
        self.base_param_settings = None
        self.clip_norm = _checked_clip(clip_grad)
        self.device = next(
            parameter.device for group in optimizer.param_groups for parameter in group["params"]
        )
        self.precision = resolve_precision(precision, self.device)
        self.loss_scaler = (
            torch.amp.GradScaler(self.device.type, **(loss_scale or {}))
            if self.precision == "fp16"
            else None
        )
        self.grad_norm: Tensor | None = None
        self.stop_on_nonfinite = stop_on_nonfinite
        # Of the step that is being made, for errors; the train loop sets it.
        self.step_number: int | None = None
        self._bad_loss: Tensor | None = None
        self._late: LateFlag | None = None

    @property
    def accumulation(self) -> int:
        """Micro-batches a step."""
        return int(self._accumulative_counts)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient exchange between processes before the last micro-batch.

        Args:
            model (nn.Module): The model, wrapped for distributed training or not.
        """
        dtype = DTYPES.get(self.precision)
        with (
            super().optim_context(model),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Adds the gradients of ``loss`` (a scalar), scaled for fp16."""
        scaled = loss if self.loss_scaler is None else self.loss_scaler.scale(loss)
        if self.stop_on_nonfinite:
            # 1 for a finite loss, else NaN; nobody has to read the loss.
            kwargs["gradient"] = scaled.detach() * 0 + 1
            if self.loss_scaler is not None:
                bad = ~torch.isfinite(loss.detach())
                self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        super().backward(scaled, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Clips the gradients, keeps their norm before clipping, updates the parameters.

        Raises:
            NonFiniteError: See the class; before any parameter changes.
        """
        self.settle()
        if self.loss_scaler is not None:
            self.loss_scaler.unscale_(self.optimizer)
        self.grad_norm = self._clip()
        if not self.stop_on_nonfinite:
            self._move(**kwargs)
            return
        bad = self._bad_step(self.grad_norm)
        if self._waits_for_no_flag():
            # The flag GradScaler hands to fused optimisers: nothing moves where it is set.
            if self.loss_scaler is None:
                self.optimizer.found_inf = bad.float()
            try:
                self._move(**kwargs)
            finally:
                if self.loss_scaler is None:
                    del self.optimizer.found_inf
            self._late = LateFlag(bad, self.grad_norm, step=self.step_number)
        elif bool(bad):
            raise non_finite_error(self.grad_norm, step=self.step_number)
        else:
            self._move(**kwargs)

    def settle(self) -> None:
        """Reads what is still unread of the last step, which may wait for the device.

        Raises:
            NonFiniteError: If that step was not finite and so was skipped.
        """
        late, self._late = self._late, None
        if late is not None:
            late.check()

    def _bad_step(self, norm: Tensor) -> Tensor:
        """Whether the step must not be made: a boolean on the device, the same on all processes."""
        bad = ~torch.isfinite(norm)
        if self.loss_scaler is None:
            return bad
        # A scaler's gradients are no news, so the losses are exchanged: one number a step.
        loss = torch.zeros_like(norm) if self._bad_loss is None else self._bad_loss.to(norm.dtype)
        self._bad_loss = None
        all_reduce(loss, op="max")
        scale = self.loss_scaler._scale  # the tensor: get_scale() would wait for the device
        unscaled = bad if scale is None else bad & (scale <= 1).squeeze()
        return (loss > 0) | unscaled

    def _waits_for_no_flag(self) -> bool:
        """Whether a bad step can be skipped on the device and reported later."""
        return self.device.type == "cuda" and (
            self.loss_scaler is not None or _skips_on_device(self.optimizer)
        )

    def _move(self, **kwargs: Any) -> None:
        if self.loss_scaler is None:
            self.optimizer.step(**kwargs)
        else:
            self.loss_scaler.step(self.optimizer, **kwargs)
            self.loss_scaler.update()

    def _clip(self) -> Tensor:
        """The gradient norm before clipping, a scalar on the device."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        options = dict(self.clip_norm)
        max_norm = options.pop("max_norm")
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Of shards it is the norm of all of them, which takes a sum over processes.
        norm: Tensor = whole(torch.nn.utils.get_total_norm(gradients, **options))
        torch.nn.utils.clip_grads_with_norm_(
            parameters, max_norm, norm, foreach=options.get("foreach")
        )
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and for fp16 the scaler's under ``loss_scaler``.

        Raises:
            NonFiniteError: If the last step was not finite: no checkpoint hides it.
        """
        self.settle()
        state: dict[str, Any] = super().state_dict()
        if self.loss_scaler is not None:
            state["loss_scaler"] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads :meth:`state_dict`'s result; a scaler state is ignored where none is used.

        Args:
            state_dict (dict): Also of mmengine's own wrappers. Not changed.

        Raises:
            ValueError: If its parameter groups are not those of this optimiser.
        """
        state_dict = dict(state_dict)
        state_dict.pop("base_param_settings", None)
        scaler_state = state_dict.pop("loss_scaler", None)
        if self.loss_scaler is not None and scaler_state:
            self.loss_scaler.load_state_dict(scaler_state)
        saved, own = state_dict["param_groups"], self.optimizer.param_groups
        if [group.get("names") for group in saved] != [group.get("names") for group in own]:
            raise ValueError(
                f"The checkpoint's optimiser has {len(saved)} parameter groups that are not the "
                f"{len(own)} of this run: model, frozen blocks and optim_wrapper.paramwise_cfg "
                "must be those of the first run to resume. To start anew from its weights, use "
                "load_from."
            )
        # Which kernel steps is a matter of this machine, not of the one that saved.
        kernels = ("fused", "foreach", "capturable")
        state_dict["param_groups"] = [
            {**group, **{name: now[name] for name in kernels if name in now}}
            for group, now in zip(saved, own, strict=True)
        ]
        self.optimizer.load_state_dict(state_dict)


def _skips_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimiser reads ``found_inf`` itself (torch's fused ones say so)."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _checked_clip(clip_grad: dict[str, Any] | None) -> dict[str, Any]:
    if clip_grad is None:
        return {"max_norm": float("inf")}  # the norm is still measured
    clip = {name: value for name, value in clip_grad.items() if name != "type"}
    if clip_grad.get("type", "norm") != "norm" or not clip.get("max_norm", 0) > 0:
        raise ValueError(
            f"optim_wrapper.clip_grad is {dict(clip_grad)}: it must be dict(max_norm=<positive "
            "number>) or None. Clipping by value is not offered."
        )
    if clip.get("error_if_nonfinite"):
        raise ValueError(
            "optim_wrapper.clip_grad.error_if_nonfinite waits for the GPU at every step; leave it "
            "out: non-finite gradients are caught anyway."
        )
    return clip
