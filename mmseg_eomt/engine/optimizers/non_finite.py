"""The error about losses and gradients that are not finite, and a flag read without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


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
