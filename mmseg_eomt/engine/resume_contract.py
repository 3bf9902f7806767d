"""What a run must have in common with the one it continues, stored in each checkpoint as data.

============================  =================================================================
changed since the checkpoint  what a resume does
============================  =================================================================
classes, their order          refused
global batch                  refused: it decides which images have been seen, and the rates
training images               refused: the order of images depends on them
sampler of training images    refused: it decides their order
seed                          refused; a config without a seed takes the checkpoint's
EMAHook added or removed      refused: weights and averaged weights would be mixed up
fewer steps than are done     refused
more or fewer total steps     allowed, with a warning: schedules given as shares of the run follow
                              the new length from here on
number of processes           allowed: order of images, masks and points stay those of the run, as
                              they depend on seed and step only; sums differ in the last bits, and
                              generators of processes (drop path) are seeded anew
micro-batch, workers, device  allowed: the same images; sums differ in the last bits
============================  =================================================================
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import EMAHook

CONTRACT_KEY = "resume_contract"
FORMAT = 1
# Enough to notice other images, few enough for a set of millions.
FINGERPRINTED = 4096
SHOWN_CLASSES = 6


def contract_of(runner: Any) -> dict[str, Any]:
    """The contract of a run with a built train loop, as plain data."""
    loop = runner.train_loop
    dataset = loop.dataloader.dataset
    meta = getattr(dataset, "metainfo", None) or {}
    plan = getattr(loop, "plan", None)
    return {
        "format": FORMAT,
        "max_iters": int(loop.max_iters),
        "global_batch_size": int(plan.global_batch_size) if plan else None,
        "micro_batch_size": int(plan.micro_batch_size) if plan else None,
        "world_size": int(runner.world_size),
        "seed": _seed_of_run(runner),
        "classes": [str(name) for name in meta.get("classes") or ()],
        "dataset_size": len(dataset),
        "dataset_fingerprint": fingerprint(dataset),
        "sampler": _sampler_of(loop.dataloader),
        "ema": has_ema(runner),
    }


def _sampler_of(loader: Any) -> str:
    """Its type and, if samples are drawn unequally often, a hash of how often."""
    sampler = getattr(loader, "sampler", None)
    name, draws = type(sampler).__name__, getattr(sampler, "draws", None)
    return name if draws is None else f"{name} {hashlib.sha256(draws.tobytes()).hexdigest()[:12]}"


def _seed_of_run(runner: Any) -> int:
    """Without what mmengine's ``diff_rank_seed`` adds to it in each process."""
    own = bool(runner._randomness_cfg.get("diff_rank_seed"))
    return int(runner.seed) - (get_rank() if own else 0)


def has_ema(runner: Any) -> bool:
    """Whether the run averages its weights."""
    return any(isinstance(hook, EMAHook) for hook in runner.hooks)


def fingerprint(dataset: Any) -> str:
    """SHA-256 over the names of (at most 4,096, evenly spread) images, without their folders.

    A moved dataset keeps it; changed pixels are not noticed. Empty if samples have no names.
    """
    if not hasattr(dataset, "get_data_info"):
        return ""
    size = len(dataset)
    count = min(size, FINGERPRINTED)
    digest = hashlib.sha256()
    for number in range(count):
        info = dataset.get_data_info(number * size // count)
        if "img_path" not in info:
            return ""
        digest.update(os.path.basename(str(info["img_path"])).encode() + b"\0")
    return digest.hexdigest()


def stored_contract(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The contract in a checkpoint, or as much of it as one of mmengine tells."""
    stored = checkpoint.get(CONTRACT_KEY)
    if isinstance(stored, Mapping):
        return dict(stored)
    meta = checkpoint["meta"]
    classes = (meta.get("dataset_meta") or {}).get("classes")
    known: dict[str, Any] = {"ema": "ema_state_dict" in checkpoint}
    if classes:
        known["classes"] = [str(name) for name in classes]
    if meta.get("seed") is not None:
        known["seed"] = int(meta["seed"])
    return known


def check_contract(
    stored: Mapping[str, Any], current: Mapping[str, Any], *, step: int, source: str
) -> list[str]:
    """Compare the contract in a checkpoint with that of the run which is to continue it.

    Args:
        stored: Of the checkpoint; what it lacks is not compared.
        current: Of the run.
        step: Steps that the checkpoint has done.
        source: Name of the checkpoint for the error.

    Returns:
        Changes that are allowed, each with its rule.

    Raises:
        ValueError: Naming all changes that are not, with was, is and the mend.
    """
    if stored.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"{source}: written by a newer mmseg_eomt (resume contract {stored['format']}, this "
            f"one knows {FORMAT}): resume it with that version."
        )
    refused = [
        f"{title}: was {_show(stored[key])}, is {_show(current[key])}; {mend}"
        for key, title, mend in _REFUSED
        if key in stored and stored[key] != current[key]
    ]
    if current["max_iters"] < step:
        refused.append(
            f"train_cfg.max_iters: {step} steps are done, now the run has {current['max_iters']}; "
            f"give at least {step}"
        )
    if refused:
        raise ValueError(
            f"{source}: this run is not the one that wrote it. {'. '.join(refused)}. To start a "
            "new run from its weights instead, use --checkpoint (or checkpoint=)."
        )
    notes = []
    for key, rule in _ALLOWED.items():
        if key in stored and stored[key] != current[key]:
            notes.append(f"{key} was {stored[key]}, is {current[key]}: {rule}")
    return notes


_REFUSED = (
    ("classes", "classes", "train with the data the run began with"),
    (
        "global_batch_size",
        "train_cfg.global_batch_size",
        "set it to what it was (train_dataloader.batch_size, what fits at once, is free)",
    ),
    ("dataset_size", "number of training images", "train with the data the run began with"),
    ("dataset_fingerprint", "names of the training images", "train with those it began with"),
    ("sampler", "train_dataloader.sampler", "set it as it was"),
    ("seed", "seed", "set randomness.seed (--seed) to what it was"),
    ("ema", "EMAHook in the config", "add or remove it as it was"),
)
_ALLOWED = {
    "max_iters": "learning rates and mask annealing given as shares of the run follow the new "
    "length from here on.",
    "world_size": "the same images and random masks in each step; sums differ in the last bits, "
    "and each process's own generators are seeded anew.",
    "micro_batch_size": "the same images in each step; sums differ in the last bits.",
}


def _show(value: Any) -> str:
    if isinstance(value, list):
        names = ", ".join(map(str, value[:SHOWN_CLASSES]))
        return f"{len(value)} ({names}{', ...' if len(value) > SHOWN_CLASSES else ''})"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return str(value)
