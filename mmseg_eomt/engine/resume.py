"""What a training checkpoint holds, and a Runner whose runs go on from it exactly."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process, master_only
from mmengine.logging import HistoryBuffer, MessageHub, print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.run_folder import newest_intact, read_resumable, write_checkpoint
from mmseg_eomt.checkpoints.sharded import SUFFIX, write_sharded
from mmseg_eomt.checkpoints.torch_file import as_plain, load_sealed
from mmseg_eomt.checkpoints.weights_file import load_state
from mmseg_eomt.engine.hooks.training_log import TrainingMonitorHook
from mmseg_eomt.engine.random_state import random_state, seed_process, set_random_state
from mmseg_eomt.engine.resume_contract import (
    CONTRACT_KEY,
    check_contract,
    contract_of,
    has_ema,
    stored_contract,
)
from mmseg_eomt.engine.schedules import TwoStageWarmupPolyLR
from mmseg_eomt.engine.sharding import is_sharded, own_parts

# What each process says of itself at its start.
OF_THE_PROCESS = ("cfg", "seed", "experiment_name", "mmengine_version")
HISTORY_KEYS = ("values", "counts", "max_length")


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


class ResumableRunner(Runner):  # type: ignore[misc]
    """Writes whole checkpoints and continues them exactly.

    N steps equal k steps, a resume and N - k steps: bit by bit on a CPU, and on a GPU with
    deterministic algorithms. That holds for data that depend on seed and position alone
    (``StepSampler`` and ``SeedSample``, as in all configs); mmengine's samplers are read past, and
    augmentation in their workers starts anew. Nothing in a checkpoint is ever run: neither pickled
    code nor a stored config.
    """

    # The checkpoint to resume from, between finding and using it; then the states of processes.
    _found: tuple[Path, dict[str, Any]] | None = None
    _processes: list[dict[str, Any]] | None = None
    _randomness_cfg: dict[str, Any]  # mmengine's

    @property
    def checkpoint_suffix(self) -> str:
        """What names of checkpoints end in."""
        return SUFFIX if is_sharded(self.model) else ".pth"

    def train(self) -> nn.Module:
        """Trains; on a resume, the checkpoint is read and checked before anything is built.

        Raises:
            ValueError: If there is a checkpoint to resume from, and it does not fit.
        """
        if self._resume and not self._has_loaded:
            self._find_checkpoint()
            seed = self._found[1]["meta"].get("seed") if self._found else None
            if seed is not None and self._randomness_cfg.get("seed") is None:
                # The order of images is fixed when the data loader is built.
                self._randomness_cfg.update(seed=int(seed))
                self.set_randomness(**self._randomness_cfg)
        model: nn.Module = super().train()
        return model

    def load_or_resume(self) -> None:
        """Resumes from the given or the newest intact checkpoint, or loads weights."""
        if self._has_loaded:
            return
        if self._resume:
            if self._found is None:
                self._find_checkpoint()
            if self._found is not None:
                self.resume(str(self._found[0]))
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continues the run of a training checkpoint, see ``resume_contract`` for what may change.

        Args:
            filename (str): Local file, or a folder of shards.
            args: Of mmengine's method; a resume is always whole, so they are not used.
            kwargs: The same.

        Raises:
            ValueError: If the file is damaged, holds code, or belongs to another run.
        """
        found, self._found = self._found, None
        if found is None or str(found[0]) != str(filename):
            found = (Path(filename), read_resumable(filename))
        resume(self, found[1], source=str(filename))
        self._processes = found[1].get(PROCESSES_KEY)
        self._has_loaded = True
        self.logger.info(f"Resumed from {filename} after step {self.iter}.")

    def restore_process(self) -> None:
        """Gives this process the random generators of the checkpoint; right before a step."""
        states, self._processes = self._processes, None
        if states:
            restore_process(self, states)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict[str, Any] | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict[str, Any] | None = None,
        by_epoch: bool = True,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        """Writes a checkpoint that is whole or not there; all processes call it together.

        Args:
            out_dir (str): Local folder.
            filename (str): Name in it; a folder of that name if it ends in ``.sharded``.
            file_client_args (dict, optional): Not used.
            save_optimizer (bool): Whether a run can be resumed from it. Defaults to True.
            save_param_scheduler (bool): Whether schedulers are in it. Defaults to True.
            meta (dict, optional): ``iter`` (steps done; by default after this one), ``epoch``.
            by_epoch (bool): Not used.
            backend_args (dict, optional): Not used.

        Raises:
            OSError: If it cannot be written; the file that was there before still is.
            TypeError: If a hook put in what cannot be read back without running code.
        """
        meta = {"epoch": self.epoch, "iter": self.iter + 1, **(meta or {})}
        checkpoint = collect_checkpoint(
            self, meta, for_resume=save_optimizer, with_schedulers=save_param_scheduler
        )
        if filename.endswith(SUFFIX):
            self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
            write_sharded(Path(out_dir) / filename, checkpoint)
        elif is_main_process():
            self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
            write_checkpoint(Path(out_dir) / filename, checkpoint)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r"^module.", ""),),
    ) -> Any:
        """Loads weights, as mmengine does; never unpickles code, never keeps a stored config."""
        if not Path(filename).expanduser().is_file():  # a URL or a name of a model zoo
            checkpoint = super().load_checkpoint(
                filename, map_location, strict, list(map(tuple, revise_keys))
            )
        else:
            checkpoint = load_sealed(Path(filename).expanduser())
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            checkpoint = _load_checkpoint_to_model(
                unwrap(self.model), checkpoint, strict, revise_keys=list(revise_keys)
            )
            self._has_loaded = True
            self.logger.info(f"Loaded the weights of {filename}.")
        meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict):
            meta.pop("config", None)
        return checkpoint

    @master_only
    def dump_config(self) -> None:
        """Leaves the config in the run's folder, without paths that lead back from a copy."""
        name = Path(self.cfg.filename).name if self.cfg.filename else f"{self.timestamp}.py"
        cfg = copy.deepcopy(self.cfg)
        for key in ("work_dir", "resume", "load_from"):
            cfg.pop(key, None)
        cfg.dump(str(Path(self.work_dir) / name))

    @cached_property
    def contract(self) -> dict[str, Any]:
        """What a run that continues this one must have in common with it."""
        return contract_of(self)

    @cached_property
    def config_text(self) -> str:
        """The config as text, for people; nothing ever runs it."""
        return str(self.cfg.pretty_text)

    def _find_checkpoint(self) -> None:
        path = newest_intact(self.work_dir) if self._load_from is None else Path(self._load_from)
        if path is None:
            self.logger.warning(f"{self.work_dir}: no checkpoint to resume; training starts anew.")
        else:
            self._found = (path, read_resumable(path))


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
