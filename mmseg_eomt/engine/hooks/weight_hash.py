"""Equal weights on all processes, compared by a hash."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather, get_world_size
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor, nn

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22
# 2**64 over the golden ratio, as a signed number: spreads neighbouring places over all bits.
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)


class WeightsDifferError(RuntimeError):
    """Processes that should hold the same weights do not."""


def hash_bits(value: Tensor) -> Tensor:
    """A number that changes with any bit of ``value`` and with their order.

    The sum modulo 2**64 of all words, each times an odd number of its place: computed on the
    device, the same in whatever order it is added up.

    Args:
        value (Tensor): Any shape and dtype.

    Returns:
        Tensor: ``int64`` scalar on its device.
    """
    words = value.detach().contiguous().flatten()
    if words.is_complex():
        words = torch.view_as_real(words).flatten()
    if words.dtype == torch.bool:
        words = words.to(torch.uint8)
    words = words.view(_WORDS[words.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=value.device)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].long()
        places = torch.arange(start, start + len(part), device=value.device)
        total += (part * ((places * _SPREAD) | 1)).sum()
    return total


def check_equal_weights(model: nn.Module, *, when: str) -> int:
    """Compares the parameters of a model over processes; all of them call it together.

    One number a parameter is exchanged. Parameters that are sharded over processes have no copy to
    be compared with and are left out.

    Args:
        model (nn.Module): Wrapped for distributed training or not.
        when (str): For the error, such as 'after step 1000'.

    Returns:
        int: How many parameters were compared.

    Raises:
        WeightsDifferError: On every process, naming the first parameter that differs, and where.
    """
    named = [(name, p) for name, p in model.named_parameters() if not hasattr(p, "to_local")]
    if not named:
        return 0
    own = torch.stack([hash_bits(parameter) for _, parameter in named])
    table = torch.stack([row.cpu() for row in all_gather(own)])  # [processes, parameters]
    differs = (table != table[0]).any(0)
    if not bool(differs.any()):
        return len(named)
    first = int(differs.nonzero()[0])
    column = table[:, first]
    values, counts = torch.unique(column, return_counts=True)
    most = values[counts == counts.max()]
    common = column[0] if bool((most == column[0]).any()) else most[0]
    odd = (column != common).nonzero().flatten().tolist()
    name = named[first][0].removeprefix("module.")
    equal = " (of two, either may be the wrong one)" if len(column) == 2 else ""
    raise WeightsDifferError(
        f"{when}: the weights of {name} on rank {', '.join(map(str, odd))} are not those of the "
        f"other ranks{equal}; {int(differs.sum())} of {len(named)} parameters differ. Gradients or "
        "weights were not exchanged: look for code that changes weights on one process only, for "
        "parameters that take part in the loss on some processes only, and for a faulty device. "
        "Resume from an earlier checkpoint."
    )


@HOOKS.register_module()
class WeightHashHook(Hook):  # type: ignore[misc]
    """Compares a hash of each parameter over processes at the start and every so many steps.

    Args:
        interval (int): Steps between comparisons; 0 compares at the start only. Defaults to 1000.

    Raises:
        ValueError: If it is negative.
    """

    # After other hooks' work on the weights, before a checkpoint of them is written.
    priority = "LOW"

    def __init__(self, *, interval: int = 1000) -> None:
        if interval < 0:
            raise ValueError(f"WeightHashHook.interval is {interval}: it must be at least 0.")
        self.interval = interval

    def before_train(self, runner: Any) -> None:
        """Compares the weights that training starts from."""
        compared = self._compare(runner, f"Before step {runner.iter + 1}")
        if compared == 0 and get_world_size() > 1:
            runner.logger.info("All weights are sharded: there are no copies to compare.")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Compares at the interval."""
        if self.interval and (runner.iter + 1) % self.interval == 0:
            self._compare(runner, f"After step {runner.iter + 1}")

    @staticmethod
    def _compare(runner: Any, when: str) -> int:
        return check_equal_weights(runner.model, when=when) if get_world_size() > 1 else 0
