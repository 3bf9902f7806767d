"""Training checkpoints in a run's folder: writing, finding the newest intact one, reading it."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from mmseg_eomt.checkpoints.sharded import SUFFIX, read_rest
from mmseg_eomt.checkpoints.torch_file import as_plain, read_training_checkpoint, save_sealed
from mmseg_eomt.safe_write import replaced, sync_folder, write_text

LAST = "last_checkpoint"
ASIDE = ".set_aside"
# Without these a run cannot go on.
NEEDED = ("meta", "message_hub", "optimizer")


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a training checkpoint with a checksum; an older file of that name stays until then.

    Args:
        path: `iter_N.pth` or `best_*.pth` in the run's folder.
        checkpoint: Tensors and plain data.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
        TypeError: If something in it could not be read back without unpickling code.
    """
    content = as_plain(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        save_sealed(content, file)


def point_to_last(path: Path) -> None:
    """Name the newest checkpoint in `last_checkpoint`, for people: a name, not a path."""
    write_text(path.with_name(LAST), path.name)


def checkpoints_of(folder: str | Path) -> dict[int, Path]:
    """The `iter_N.pth` and `iter_N.sharded` of a run's folder by step, oldest first."""
    found = {
        int(match.group(1)): path
        for path in sorted(Path(folder).glob("iter_*"))
        if (match := re.fullmatch(rf"iter_(\d+)(\.pth|{re.escape(SUFFIX)})", path.name))
    }
    return dict(sorted(found.items()))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, file or folder, if it is there; a half removed one is none any more."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    going = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def newest_intact(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that can be resumed; None if the folder has none at all.

    Damaged ones are named in a warning and passed over. Only names are read, not
    `last_checkpoint`: a copied folder never leads back to the original.

    Raises:
        ValueError: If there are checkpoints and all of them are damaged.
    """
    found = checkpoints_of(folder)
    problems: list[str] = []
    for path in reversed(found.values()):
        try:
            read_resumable(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            print_log(f"Passed over: {error}", "current", logging.WARNING)
        else:
            return path
    if problems:
        raise ValueError(
            f"{folder}: none of its {len(problems)} checkpoints can be resumed, so training does "
            f"not start over in silence. {' '.join(problems)} Start a new run in another folder, "
            "from exported/last.safetensors with --checkpoint if that is intact."
        )
    return None


def read_resumable(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint to resume from, on the CPU, without unpickling code.

    Args:
        path: `iter_N.pth`, or `iter_N.sharded`, of whose tensors only names and sizes are read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code, lacks what a run needs, or has NaN weights.
    """
    sharded = Path(path).is_dir() and Path(path).name.endswith(SUFFIX)
    checkpoint = read_rest(path) if sharded else read_training_checkpoint(path)
    missing = [name for name in NEEDED if not isinstance(checkpoint.get(name), Mapping)]
    if missing:
        raise ValueError(
            f"{path}: cannot be resumed: it has no {', '.join(missing)} "
            f"(it has: {', '.join(map(str, checkpoint))}). A run continues from iter_*.pth; to "
            "start a new run from these weights, use --checkpoint."
        )
    step = checkpoint["meta"].get("iter")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"{path}: cannot be resumed: meta.iter is {step!r}, not a step.")
    broken = [name for name, value in checkpoint["state_dict"].items() if _has_nan(value)]
    if broken:
        raise ValueError(
            f"{path}: cannot be resumed: {len(broken)} of its weights are NaN, the first is "
            f"{broken[0]}. Resume from an earlier checkpoint."
        )
    return checkpoint


def set_aside(folder: str | Path, *, after: int) -> list[Path]:
    """Rename checkpoints of later steps than a run begins at, so that none is taken for its own.

    They are left over from another run in this folder, or from a part that is trained again.

    Args:
        folder: The run's folder.
        after: Step the run begins at.

    Returns:
        Their new names.
    """
    moved = []
    for step, path in checkpoints_of(folder).items():
        if step > after:
            target = path.with_name(path.name + ASIDE)
            number = 1
            while target.exists():
                number += 1
                target = path.with_name(f"{path.name}{ASIDE}{number}")
            moved.append(path.rename(target))
    if moved:
        sync_folder(Path(folder))
    return moved


def _has_nan(value: Any) -> bool:
    # Those in shards are looked at when they are read.
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
