"""Checkpoints that survive a kill, the best one kept, and weights exported from both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmseg.registry import HOOKS
from torch import Tensor

from mmseg_eomt.checkpoints.describe import header_from_config, unwrap
from mmseg_eomt.checkpoints.run_folder import (
    checkpoints_of,
    point_to_last,
    remove_checkpoint,
    set_aside,
)
from mmseg_eomt.checkpoints.sharded import SUFFIX, has_shards
from mmseg_eomt.checkpoints.weights_file import read_training_notes, save_weights
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from mmseg_eomt.safe_write import remove_temporaries

_NOT_OFFERED = {
    "out_dir": "checkpoints stay in the run's folder, so that it can be copied and resumed; set "
    "work_dir (--work-dir)",
    "filename_tmpl": "the names are iter_N.pth or iter_N.sharded, which --resume looks for",
    "file_client_args": "only local folders can rename a file safely",
    "backend_args": "only local folders can rename a file safely",
    "published_keys": "exported/best.safetensors and last.safetensors are the weights to publish",
}


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):  # type: ignore[misc]
    """mmengine's ``CheckpointHook`` with the same keys, and nothing that can be lost.

    A checkpoint is written beside its place, synced and renamed; only then older ones go. All
    paths it stores are names within the run's folder. It is taken between optimiser steps, so no
    half-accumulated gradient exists in it. ``SegmentationRunner`` uses it for ``CheckpointHook``.

    Args:
        interval (int): Steps between checkpoints. Defaults to -1, none but the last.
        by_epoch (bool): Must be False: a run counts optimiser steps.
        max_keep_ckpts (int): How many ``iter_N`` stay, -1 for all. With 2, a damaged newest
            one still leaves one to resume from. Defaults to -1.
        save_best (str | list[str], optional): Metrics whose best weights are kept in
            ``best_METRIC_iter_N.pth``; 'auto' is the first one of the evaluation.
        rule (str | list[str], optional): 'greater' or 'less'; None infers it from the name.
        kwargs: ``save_last``, ``save_begin``, ``save_optimizer``, ``save_param_scheduler``,
            ``greater_keys``, ``less_keys`` of mmengine's.

    Raises:
        ValueError: For a key that is not offered; the message says what takes its place.
    """

    def __init__(
        self,
        *,
        interval: int = -1,
        by_epoch: bool = False,
        max_keep_ckpts: int = -1,
        save_best: str | list[str] | None = None,
        rule: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if by_epoch:
            raise ValueError(
                "checkpoint.by_epoch is True: runs count optimiser steps, set by_epoch=False and "
                "interval in steps."
            )
        for name, reason in _NOT_OFFERED.items():
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"checkpoint.{name} is not offered: {reason}.")
        super().__init__(
            interval=interval,
            by_epoch=False,
            max_keep_ckpts=max_keep_ckpts,
            save_best=save_best,
            rule=rule,
            **kwargs,
        )

    def before_train(self, runner: Any) -> None:
        """Cleans up after killed writes, and sets checkpoints aside that are not of this run."""
        self.out_dir = runner.work_dir
        self.filename_tmpl = f"iter_{{}}{runner.checkpoint_suffix}"
        if not is_main_process():
            return
        folder = Path(runner.work_dir)
        for place in (folder, folder / "exported"):
            for path in remove_temporaries(place):
                runner.logger.info(f"Removed {path}, left by a write that was interrupted.")
        for path in set_aside(folder, after=runner.iter):
            runner.logger.warning(
                f"This run begins after step {runner.iter}; a later checkpoint in its folder is "
                f"renamed to {path.name}, so that no resume takes it. Delete it if it is not "
                "wanted."
            )

    def after_train(self, runner: Any) -> None:
        """Does nothing: publishing is what ``ExportWeightsHook`` does."""

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = name
        runner.message_hub.update_info("last_ckpt", name)
        runner.save_checkpoint(
            runner.work_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=False,
            **self.args,
        )
        if not is_main_process():
            return
        path = Path(runner.work_dir) / name
        point_to_last(path)
        if self.max_keep_ckpts > 0:
            older = [old for at, old in checkpoints_of(path.parent).items() if at < step]
            for old in older[: max(0, len(older) + 1 - self.max_keep_ckpts)]:
                remove_checkpoint(old)

    def _save_best_checkpoint(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        """Keeps the weights that were just validated where a metric is the best so far.

        Best weights first, then a checkpoint that knows of them, and the older best last: killed
        between any two of these, the run has a best file and a checkpoint that agree.

        Raises:
            KeyError: If the validation has no such metric.
        """
        if not self.save_best:
            return
        if "auto" in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        hub = runner.message_hub
        several = len(self.key_indicators) > 1
        outdated: list[str] = []
        improved = False
        step = runner.iter
        for metric, rule in zip(self.key_indicators, self.rules, strict=True):
            if metric not in metrics:
                raise KeyError(
                    f"checkpoint.save_best is {metric!r}, but the validation gives "
                    f"{', '.join(metrics)}: choose one of these."
                )
            end = f"_{metric}" if several else ""
            best = hub.get_info(f"best_score{end}", self.init_value_map[rule])
            score = metrics[metric]
            if score is None or not self.is_better_than[metric](score, best):
                continue
            name = f"best_{metric}_{self.filename_tmpl.format(step)}".replace("/", "_")
            meta = {"epoch": runner.epoch, "iter": step}
            previous = hub.get_info(f"best_ckpt{end}")
            hub.update_info(f"best_score{end}", float(score))
            hub.update_info(f"best_ckpt{end}", name)
            runner.save_checkpoint(
                runner.work_dir,
                name,
                save_optimizer=False,
                save_param_scheduler=False,
                meta=meta,
                by_epoch=False,
            )
            runner.logger.info(f"Best {metric} so far, {score:.4f}, is kept in {name}.")
            # A name within this folder, whatever path an older version stored.
            older = os.path.basename(str(previous or ""))
            if older != name and older.startswith("best_") and older.endswith((".pth", SUFFIX)):
                outdated.append(older)
            improved = True
        if improved:
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": step})
        if is_main_process():
            for name in outdated:
                remove_checkpoint(Path(runner.work_dir) / name)


@HOOKS.register_module()
class ExportWeightsHook(Hook):  # type: ignore[misc]
    """Writes `exported/best.safetensors` and `exported/last.safetensors` in the run folder.

    Best is by `metric` over validations; last follows every training checkpoint and the end of
    training. With `EMAHook` both hold the averaged weights, which are those that were validated.
    Every training checkpoint gets the header as JSON text under 'mmseg_eomt'.

    Args:
        metric (str): Validation metric that decides. Defaults to 'mIoU'.
        greater (bool): Whether more is better. Defaults to True.
        folder (str): Folder inside the run folder. Defaults to 'exported'.
    """

    # Before EMAHook (NORMAL), which puts the raw weights back after a validation.
    priority = "ABOVE_NORMAL"

    def __init__(
        self, *, metric: str = "mIoU", greater: bool = True, folder: str = "exported"
    ) -> None:
        self.metric, self.greater, self.folder = metric, greater, folder
        self.best: float | None = None
        self.header: ModelHeader | None = None
        self._steps = 0
        self._exported_step = -1

    def before_train(self, runner: Any) -> None:
        """Describes the model, and on a resume reads back the best score so far."""
        meta = runner.train_loop.dataloader.dataset.metainfo
        self.header = header_from_config(runner.cfg, meta, model=runner.model)
        self.best = None
        self._steps = runner.iter
        path = self._path(runner, "best")
        if runner.iter > 0 and path.is_file():
            # The score travels in the file itself, so that it is never lost on a resume.
            self.best = read_training_notes(path).get("metrics", {}).get(self.metric)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Counts finished steps; the runner's own counter moves on after the hooks only."""
        self._steps = batch_idx + 1

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Exports the weights that were just validated if they are the best so far.

        Raises:
            KeyError: If the validation has no such metric.
        """
        if self.header is None or not metrics:  # a validation outside training
            return
        if self.metric not in metrics:
            raise KeyError(
                f"ExportWeightsHook.metric is {self.metric!r}, but the validation gives "
                f"{', '.join(metrics)}: choose one of these."
            )
        score = float(metrics[self.metric])
        if not math.isfinite(score):
            return
        better = self.best is None or (score > self.best if self.greater else score < self.best)
        if better:
            self.best = score
            self._write(runner, "best", self._validated_state(runner), metrics)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Puts the header into a training checkpoint and exports the last weights."""
        if self.header is None:
            return
        checkpoint[HEADER_KEY] = self.header.to_json()
        self._export_last(runner)

    def after_train(self, runner: Any) -> None:
        """Exports the last weights."""
        self._export_last(runner)

    def _validated_state(self, runner: Any) -> dict[str, Tensor]:
        """The weights that were validated, wherever they are by now.

        For a validation EMAHook puts the averaged weights into the model itself. If a config gives
        it an earlier turn than this hook, it has put the raw ones back already.
        """
        for hook in runner.hooks:
            if hook is self:
                break
            if isinstance(hook, EMAHook):
                return averaged_state(runner)
        return dict(unwrap(runner.model).state_dict())

    def _export_last(self, runner: Any) -> None:
        if self._steps != self._exported_step:
            self._write(runner, "last", averaged_state(runner), {})
            self._exported_step = self._steps

    def _write(
        self, runner: Any, name: str, state: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        # Of shards each process has to hand over its own.
        if self.header is None or not (is_main_process() or has_shards(state)):
            return
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        notes = {"step": self._steps, "metrics": numbers}
        save_weights(self._path(runner, name), state, self.header, notes=json.dumps(notes))

    def _path(self, runner: Any, name: str) -> Path:
        return Path(runner.work_dir) / self.folder / f"{name}.safetensors"


def averaged_state(runner: Any) -> dict[str, Tensor]:
    """Return EMAHook's averaged weights where it is on, else those of the model."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return dict(unwrap(hook.ema_model).state_dict())
    return dict(unwrap(runner.model).state_dict())
