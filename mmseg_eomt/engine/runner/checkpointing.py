"""What a training checkpoint holds, and how a run continues from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import mmengine
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.optim import OptimWrapper
from torch import nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.lean import load_state
from mmseg_eomt.checkpoints.plain_data import hub_from_plain, hub_to_plain
from mmseg_eomt.engine.hooks.training_monitor_hook import TrainingMonitorHook
from mmseg_eomt.engine.runner.own_parts import own_parts
from mmseg_eomt.engine.runner.random_state import random_state, seed_process, set_random_state
from mmseg_eomt.engine.runner.resume_contract import (
    CONTRACT_KEY,
    check_contract,
    has_ema,
    stored_contract,
)
from mmseg_eomt.engine.schedulers import TwoStageWarmupPolyLR

PROCESSES_KEY = "processes"


def collect_checkpoint(
    runner: Any, meta: Mapping[str, Any], *, for_resume: bool, with_schedulers: bool
) -> dict[str, Any]:
    """State of a run after a step; all processes call it together.

    It is taken between optimiser steps, so there are no gradients in it.

    Args:
        runner: In training.
        meta: With ``epoch`` and ``iter`` (steps done).
        for_resume: With optimiser, schedulers, contract and the state of every process; else the
            weights and what describes them.
        with_schedulers: Whether ``for_resume`` includes the schedulers.

    Returns:
        dict: In mmengine's layout, its message hub as plain data; beyond it ``resume_contract``
        and ``processes`` (per process: random generators, steps not yet logged).
    """
    checkpoint: dict[str, Any] = {
        "meta": {
            **meta,
            "cfg": runner.config_text,
            "seed": runner.seed,
            "experiment_name": runner.experiment_name,
            "time": time.strftime("%Y%m%d_%H%M%S", time.localtime()),
            "mmengine_version": mmengine.__version__,
        },
        "state_dict": dict(_module(runner).state_dict()),
        "message_hub": hub_to_plain(runner.message_hub),
    }
    dataset_meta = getattr(runner.train_dataloader.dataset, "metainfo", None)
    if dataset_meta is not None:
        checkpoint["meta"]["dataset_meta"] = dataset_meta
    if not for_resume:
        return checkpoint
    checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
    if with_schedulers and runner.param_schedulers is not None:
        checkpoint["param_schedulers"] = [item.state_dict() for item in _schedulers(runner)]
    checkpoint[CONTRACT_KEY] = runner.contract
    kept = getattr(runner.train_loop, "training_random_state", None)
    own: dict[str, Any] = {"random": kept or random_state()}
    monitor = _monitor(runner)
    if monitor is not None:
        own["record"] = monitor.record.state()
    checkpoint[PROCESSES_KEY] = all_gather_object(own)
    return checkpoint


def resume(runner: Any, checkpoint: dict[str, Any], *, source: str) -> None:
    """Give a run the state of a checkpoint, all but the random generators.

    Args:
        runner: With its train loop and optimiser built.
        checkpoint: Of ``read_resumable``.
        source: Its name for messages.

    Raises:
        ValueError: If the run is not the one that wrote it, see ``resume_contract``, or a part of
            the checkpoint does not fit; before anything is trained.
    """
    step = int(checkpoint["meta"]["iter"])
    if ("ema_state_dict" in checkpoint) != has_ema(runner):
        # With EMA a checkpoint's 'state_dict' holds the averaged weights.
        raise ValueError(
            f"{source}: {'has' if 'ema_state_dict' in checkpoint else 'has no'} averaged weights "
            "(EMAHook), and this run is the other way round: add EMAHook to custom_hooks or remove "
            "it, as it was. To start a new run from these weights, use --checkpoint."
        )
    notes = check_contract(stored_contract(checkpoint), runner.contract, step=step, source=source)
    _agree(f"step {step}")
    _build_optimizer(runner, source=source)
    checkpoint = own_parts(runner, checkpoint, source=source)
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    load_state(_module(runner), checkpoint["state_dict"], source=source)
    runner.train_loop._epoch = int(checkpoint["meta"].get("epoch", 0))
    runner.train_loop._iter = step
    runner.message_hub.load_state_dict(hub_from_plain(checkpoint["message_hub"]))
    _load_optimizer(runner, checkpoint["optimizer"], source=source)
    if runner.param_schedulers is not None:
        notes += _load_schedulers(runner, checkpoint, source=source)
    if PROCESSES_KEY not in checkpoint:
        notes.append(
            "It has no random generators and no resume contract, as mmengine writes it: data and "
            "schedule go on, but not to the last bit."
        )
    for note in notes:
        runner.logger.warning(f"{source}: {note}")


def restore_process(runner: Any, states: list[dict[str, Any]]) -> None:
    """Random generators and unlogged steps of this process, right before the next step.

    Args:
        runner: Whose ``train_loop`` stands at the step of the checkpoint.
        states: ``processes`` of the checkpoint.
    """
    rank, same = get_rank(), len(states) == get_world_size()
    monitor = _monitor(runner)
    records = [state["record"] for state in states if "record" in state]
    if monitor is not None and records:
        monitor.record.load([records[rank]] if same else records)
    if same:
        set_random_state(states[rank]["random"])
    else:
        seed_process(seed=runner.seed, step=runner.train_loop.iter, rank=rank)


def _build_optimizer(runner: Any, *, source: str) -> None:
    wrapper = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if not isinstance(wrapper, OptimWrapper):
        raise ValueError(
            f"{source}: optim_wrapper is a {type(wrapper).__name__}; a resume needs an "
            "OptimWrapper such as MixedPrecisionOptimWrapper."
        )


def _load_optimizer(runner: Any, state: dict[str, Any], *, source: str) -> None:
    try:
        runner.optim_wrapper.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{source}: its optimiser state does not fit this run ({error!r}): model and "
            "optim_wrapper must be those of the first run."
        ) from error


def _load_schedulers(runner: Any, checkpoint: Mapping[str, Any], *, source: str) -> list[str]:
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    own, stored = _schedulers(runner), checkpoint.get("param_schedulers")
    if not isinstance(stored, list) or len(stored) != len(own):
        found = len(stored) if isinstance(stored, list) else "no"
        raise ValueError(
            f"{source}: has {found} learning-rate schedules, this run has {len(own)}: "
            "param_scheduler must have the parts of the first run."
        )
    for scheduler, state in zip(own, stored, strict=True):
        scheduler.load_state_dict(state)
    before = stored_contract(checkpoint).get("max_iters")
    kept = [type(item).__name__ for item in own if not isinstance(item, TwoStageWarmupPolyLR)]
    if kept and before not in (None, runner.contract["max_iters"]):
        return [f"{', '.join(kept)} keeps the length stored in the checkpoint ({before} steps)."]
    return []


def _schedulers(runner: Any) -> list[Any]:
    found = runner.param_schedulers
    return (
        [item for group in found.values() for item in group] if isinstance(found, dict) else found
    )


def _monitor(runner: Any) -> TrainingMonitorHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, TrainingMonitorHook)), None)


def _module(runner: Any) -> nn.Module:
    return unwrap(runner.model)


def _agree(found: str) -> None:
    everyone = all_gather_object(found)
    if len(set(everyone)) > 1:
        raise ValueError(
            f"The processes found different checkpoints to resume from: {', '.join(everyone)}. "
            "The run's folder must be the same for all of them (a shared file system)."
        )
