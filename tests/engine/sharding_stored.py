"""Training checkpoints, in shards or not, as trees of whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmseg_eomt.checkpoints.sharded import StoredTensor, iterate_stored, map_tensors, read_rest


def whole_tree(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint."""
    if not path.is_dir():
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]

    def read(keys: tuple[Any, ...], value: Any) -> Any:
        return next(iterate_stored(path, [value])) if isinstance(value, StoredTensor) else value

    return map_tensors(read_rest(path), read)  # type: ignore[no-any-return]
