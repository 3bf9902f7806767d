"""What class tokens know about labelled images while pretraining runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor

from dinov2_pretraining.monitors.due import check_interval, is_due
from dinov2_pretraining.monitors.labelled_folder import LabelledFiles, read_classes, split_classes
from dinov2_pretraining.monitors.linear_probe import linear_vote
from dinov2_pretraining.monitors.nearest_neighbours import neighbours_vote
from dinov2_pretraining.monitors.teacher_features import class_tokens
from mmseg_eomt.checkpoints.describe import unwrap


@HOOKS.register_module()
class LabelledAccuracyHook(Hook):  # type: ignore[misc]
    """Logs ``knn_accuracy`` and ``linear_accuracy`` in percent, before the first step and later.

    Protocol: class tokens of the teacher after the final norm, of the central square of each
    image (7/8 of its shorter side, resized bicubically to ``size``), in float32. Every fifth
    image of a class is tested on, the others are learnt from; or those of ``folder`` are learnt
    from and those of ``val_folder`` tested on. k-NN: `neighbours_vote`. Linear: `linear_vote`, a
    logistic regression on standardised features. Labels are for these numbers only, training
    never sees them. Made for some thousands of images: linear_accuracy is solved on the CPU.

    Args:
        folder (str, optional): One subfolder of images for each class. Defaults to None: nothing
            is measured.
        val_folder (str, optional): The same for testing. Defaults to None.
        interval (float | int): Share of the run (float) or steps (int) between measurements.
            Defaults to 0.1.
        size (int): Side of the views in pixels. Defaults to 224.
        batch_size (int): Images a forward pass and process. Defaults to 32.
        neighbours (int): Of k-NN. Defaults to 20.

    Raises:
        FileNotFoundError: If a folder is missing or a class has no image.
        ValueError: If an argument is wrong, or the classes do not fit.
    """

    # After the teacher of the step is there.
    priority = "LOW"

    def __init__(
        self,
        *,
        folder: str | Path | None = None,
        val_folder: str | Path | None = None,
        interval: float | int = 0.1,
        size: int = 224,
        batch_size: int = 32,
        neighbours: int = 20,
    ) -> None:
        check_interval(interval, name="LabelledAccuracyHook.interval")
        for name, value in (("size", size), ("batch_size", batch_size), ("neighbours", neighbours)):
            if value < 1:
                raise ValueError(f"LabelledAccuracyHook.{name} is {value}; allowed: 1 and more.")
        if folder is None and val_folder is not None:
            raise ValueError(
                f"LabelledAccuracyHook.val_folder is {val_folder}, but there is no folder to learn "
                "from: give folder, too."
            )
        self.interval, self.size = interval, size
        self.batch_size, self.neighbours = batch_size, neighbours
        self._parts = None if folder is None else _parts(folder, val_folder)

    def before_train(self, runner: Any) -> None:
        """Measures where the run starts from."""
        if runner.iter == 0:
            self._measure(runner, 0)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Measures where it is due."""
        done = runner.iter + 1
        if is_due(done, total=runner.max_iters, interval=self.interval):
            self._measure(runner, done)

    def _measure(self, runner: Any, done: int) -> None:
        if self._parts is None:
            return
        learn, test = self._parts
        model = unwrap(runner.model)
        tokens = [
            _shared_class_tokens(model, part.paths, size=self.size, batch_size=self.batch_size)
            for part in (learn, test)
        ]
        if not is_main_process():
            return
        labels = torch.tensor(learn.labels)
        truth = torch.tensor(test.labels)
        classes = len(learn.classes)
        found = {
            "knn_accuracy": neighbours_vote(
                tokens[0], labels, tokens[1], num_classes=classes, neighbours=self.neighbours
            ),
            "linear_accuracy": linear_vote(tokens[0], labels, tokens[1], num_classes=classes),
        }
        scores = {
            name: 100 * float((vote == truth).double().mean()) for name, vote in found.items()
        }
        largest = 100 * float(truth.bincount().max() / len(truth))
        runner.logger.info(
            f"After {done} steps: k-NN {scores['knn_accuracy']:.1f} %, linear "
            f"{scores['linear_accuracy']:.1f} % of {len(truth)} images right, learnt from "
            f"{len(labels)} (the most frequent of {classes} classes has {largest:.1f} %)."
        )
        runner.visualizer.add_scalars(scores, step=done)


def _parts(
    folder: str | Path, val_folder: str | Path | None
) -> tuple[LabelledFiles, LabelledFiles]:
    learn = read_classes(folder)
    if val_folder is None:
        return split_classes(learn)
    test = read_classes(val_folder)
    if learn.classes != test.classes:
        only = sorted(set(learn.classes) ^ set(test.classes))
        raise ValueError(
            f"LabelledAccuracyHook: {folder} and {val_folder} have other classes: only one of them "
            f"has {', '.join(only[:5])}. Give both the same subfolders."
        )
    return learn, test


def _shared_class_tokens(model: Any, paths: Sequence[str], *, size: int, batch_size: int) -> Tensor:
    """`class_tokens`, each process having a share of the files; all get all."""
    rank, world_size = get_dist_info()
    own = class_tokens(model, paths[rank::world_size], size=size, batch_size=batch_size)
    tokens = torch.empty(len(paths), own.shape[1])
    for other, part in enumerate(all_gather_object(own)):
        tokens[other::world_size] = part
    return tokens
