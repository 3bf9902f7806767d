"""mmengine's Runner with checkpoints that cannot be lost and resumes that are exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.sealed import load_sealed
from mmseg_eomt.checkpoints.sharded import SUFFIX, write_sharded
from mmseg_eomt.checkpoints.training import newest_intact, read_resumable, write_checkpoint
from mmseg_eomt.engine.runner.checkpointing import (
    PROCESSES_KEY,
    collect_checkpoint,
    restore_process,
    resume,
)
from mmseg_eomt.engine.runner.resume_contract import contract_of
from mmseg_eomt.engine.sharding.units import is_sharded


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
