"""Lean weights of the best and the last state, and the model header in training checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmseg.registry import HOOKS
from torch import Tensor

from mmseg_eomt.checkpoints.describe import header_from_config, unwrap
from mmseg_eomt.checkpoints.sharded import has_shards
from mmseg_eomt.checkpoints.weights_file import read_training_notes, save_weights
from mmseg_eomt.header import HEADER_KEY, ModelHeader


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
