"""Reads the data in a PyTorch file past the objects in it, without running their code.

A training checkpoint may hold objects of classes beside its weights (LightlyTrain's ``last.ckpt``
holds a whole data loader). Each foreign name in the pickle is answered by a stand-in that does
nothing and keeps nothing; torch's weights-only reader does the rest. So no foreign class is
imported, let alone called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmseg_eomt.checkpoints.archive import check_archive, is_archive


class StandIn:
    """Takes the place of any class or function, and ignores everything."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def read_past_objects(path: Path) -> Any:
    """The content of a PyTorch file with a `StandIn` for each object that is not plain data.

    Raises:
        ValueError: If it cannot be read even so.
    """
    check_archive(path)
    if not is_archive(path):
        raise ValueError(f"{path}: is in PyTorch's old format, whose objects cannot be left out.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # One class for each name: torch tells them apart by the class.
        allowed: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in names]
        with torch.serialization.safe_globals(allowed), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path}: cannot be read ({str(error)[:200]}).") from error


def holds_objects(content: Any) -> bool:
    """Whether a stand-in lies anywhere in dicts, lists and tuples."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StandIn) or (isinstance(item, type) and issubclass(item, StandIn)):
            return True
        if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item.keys(), *item.values()] if isinstance(item, dict) else item
    return False
