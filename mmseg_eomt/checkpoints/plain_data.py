"""Checkpoints as plain data and tensors: what can be read without unpickling any code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub, print_log
from torch import Tensor

# What each process says of itself at its start.
OF_THE_PROCESS = ("cfg", "seed", "experiment_name", "mmengine_version")
HISTORY_KEYS = ("values", "counts", "max_length")


def as_plain(value: Any, *, name: str = "checkpoint") -> Any:
    """`value` made of dict, list, tuple, str, bytes, int, float, bool, None and CPU tensors.

    NumPy values become Python's or tensors, config containers plain ones.

    Args:
        value: The data.
        name: What it is called in errors.

    Raises:
        TypeError: Naming the place of anything else.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, Mapping):
        return {
            as_plain(key, name=name): as_plain(item, name=f"{name}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [as_plain(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    kinds: tuple[Any, ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)  # without its subclass (such as SampleIndex), which would be code
    if value is None or isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return value
    raise TypeError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}: a training checkpoint "
        "holds plain data and tensors only, because reading anything else would run code. Store "
        "its values instead."
    )


def hub_to_plain(hub: MessageHub) -> dict[str, Any]:
    """State of mmengine's message hub without its classes.

    Values of the hub that are no plain data are left out, with a warning.
    """
    state = hub.state_dict()
    scalars: dict[str, Any] = {}
    for name, history in state["log_scalars"].items():
        values, counts = history.data
        scalars[name] = {
            "values": torch.tensor(np.asarray(values), dtype=torch.float64),
            "counts": torch.tensor(np.asarray(counts), dtype=torch.int64),
            "max_length": int(history.max_length),
        }
    infos: dict[str, Any] = {}
    for name, value in state["runtime_info"].items():
        if name in OF_THE_PROCESS:
            continue
        try:
            infos[name] = as_plain(value, name=name)
        except TypeError as error:
            print_log(f"Not stored for a resume: {error}", "current", logging.WARNING)
    resumed = {name: True for name, flag in state["resumed_keys"].items() if flag}
    return {"log_scalars": scalars, "runtime_info": infos, "resumed_keys": resumed}


def hub_from_plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub's `load_state_dict` takes, of :func:`hub_to_plain` or of mmengine itself."""
    scalars: dict[str, Any] = {}
    for name, history in state.get("log_scalars", {}).items():
        if isinstance(history, Mapping) and all(key in history for key in HISTORY_KEYS):
            history = HistoryBuffer(
                history["values"].numpy(), history["counts"].numpy(), history["max_length"]
            )
        scalars[name] = history
    return {
        "log_scalars": scalars,
        "runtime_info": dict(state.get("runtime_info", {})),
        "resumed_keys": dict(state.get("resumed_keys", {})),
    }
