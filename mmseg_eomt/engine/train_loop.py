"""The training loop: a global batch in micro-batches, one step, one update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import LOOPS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.mixed_precision import NonFiniteError
from mmseg_eomt.engine.random_state import kept_random_state, random_state
from mmseg_eomt.engine.watch.capture import explained
from mmseg_eomt.engine.watch.first_nonfinite import StepInputs
from mmseg_eomt.engine.watch.speed import StepClock

# Of the message hub; a name that its log lines for validations do not pick up.
VALIDATED = "checked_step"


@LOOPS.register_module()
class AccumulationTrainLoop(IterBasedTrainLoop):  # type: ignore[misc]
    """Iteration-based training to a stated global batch.

    ``max_iters``, intervals, schedules and checkpoints all count optimiser steps, however many
    micro-batches a step takes (with mmengine's own accumulation they count micro-batches).
    Before each step the head is told step and seed, and with several micro-batches the model is
    given all of them, so that losses are normalised over the global batch. Gradients of
    micro-batches are averaged, and processes exchange them once a step.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): Training data. In a dict, ``batch_size`` is the most
            images a process takes at once.
        max_iters (int): Optimiser steps.
        global_batch_size (int): Images an optimiser step, over all processes.
        val_begin (int): First step that may be followed by a validation. Defaults to 1.
        val_interval (int): Steps between validations; one more follows the last step. Defaults
            to 1000.
        dynamic_intervals (list[tuple[int, int]], optional): Of mmengine's loop.

    Raises:
        ValueError: If the global batch cannot be spread evenly, or the data give no batch.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any] | dict[str, Any],
        max_iters: int,
        *,
        global_batch_size: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        if max_iters < 1 or val_interval < 1:
            raise ValueError(
                f"train_cfg.max_iters is {max_iters} and train_cfg.val_interval {val_interval}: "
                "both must be at least 1."
            )
        given: Any = (
            dataloader["batch_size"] if isinstance(dataloader, dict) else dataloader.batch_size
        )
        self.plan: BatchPlan = plan_batches(
            global_batch_size, world_size=get_world_size(), batch_size=given
        )
        if isinstance(dataloader, dict):
            dataloader = {**dataloader, "batch_size": self.plan.micro_batch_size}
        elif given != self.plan.micro_batch_size:
            raise ValueError(
                f"The data loader makes batches of {given}, a process needs micro-batches of "
                f"{self.plan.micro_batch_size} for train_cfg.global_batch_size "
                f"{global_batch_size}: build it with that batch_size."
            )
        self.training_random_state: dict[str, Any] | None = None
        # A step that is not finite may be known one step later.
        self._recent: list[StepInputs] = []
        self.clock = StepClock()
        super().__init__(runner, dataloader, max_iters, val_begin, val_interval, dynamic_intervals)

    @property
    def global_batch_size(self) -> int:
        """Images an optimiser step, over all processes."""
        return self.plan.global_batch_size

    def run(self) -> nn.Module:
        """Trains from the current step to ``max_iters``.

        Returns:
            nn.Module: The model, wrapped for distributed training or not.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        self._prepare_optimizer()
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        if self._iter > 0:
            self._skip_seen_data()
            self.runner.restore_process()
            # Killed after the checkpoint of a step, before the validation of that step was done.
            self._decide_current_val_interval()
            if self.runner.message_hub.get_info(VALIDATED) != self._iter:
                self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            with self._explaining():
                self.run_iter(self._next_batches())
            self._decide_current_val_interval()
            self._validate_if_due()
        with self._explaining():
            self._settle()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model  # type: ignore[no-any-return]

    def run_iter(self, data_batch: list[dict[str, Any]]) -> None:
        """One optimiser step.

        Args:
            data_batch (list[dict]): Its micro-batches, as the data loader made them.

        Raises:
            NonFiniteError: If the loss or gradient of this step or the last one is not finite;
                before any weight changes.
        """
        runner = self.runner
        seen = merge_batches(data_batch)
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=seen)
        model = unwrap(runner.model)
        self.prepare_step(model, data_batch)
        self._remember(data_batch, model)
        logs: list[dict[str, Tensor]] = [
            runner.model.train_step(micro_batch, optim_wrapper=runner.optim_wrapper)
            for micro_batch in data_batch
        ]
        outputs = {
            name: torch.stack([log[name].detach().float() for log in logs]).mean()
            for name in logs[0]
        }
        runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=seen, outputs=outputs)
        self._iter += 1

    def prepare_step(self, model: Any, data_batch: list[dict[str, Any]]) -> None:
        """Tells a segmentor what it must know before the micro-batches of a step come.

        Args:
            model (nn.Module): Not wrapped.
            data_batch (list[dict]): The micro-batches.
        """
        model.decode_head.set_step(self._iter, self.runner.seed)
        if len(data_batch) > 1:
            model.prepare_accumulation(data_batch)

    def _validate_if_due(self) -> None:
        """Validates after steps at the interval and the last one, without effect on training."""
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is None or self._iter < self.val_begin or not due:
            return
        with self._explaining():
            self._settle()
        # First, so that a checkpoint written because of this validation tells of it.
        self.runner.message_hub.update_info(VALIDATED, self._iter)
        with self.clock.pause(), kept_random_state() as state:
            # A checkpoint written in between has to hold the generators of training.
            self.training_random_state = state
            self.runner.val_loop.run()
        self.training_random_state = None

    def _remember(self, data_batch: list[dict[str, Any]], model: Any) -> None:
        """Keeps what the next step is computed from, for a capture of it."""
        wrapper = self.runner.optim_wrapper
        if not getattr(wrapper, "stop_on_nonfinite", False):
            return
        wrapper.step_number = self._iter
        inputs = StepInputs(
            step=self._iter,
            seed=self.runner.seed,
            batches=data_batch,
            random=random_state(),
            mask_probs=list(getattr(getattr(model, "decode_head", None), "mask_probs", ())),
        )
        self._recent = [*self._recent[-1:], inputs]

    def _settle(self) -> None:
        """Waits for the news of the last step."""
        if hasattr(self.runner.optim_wrapper, "settle"):
            self.runner.optim_wrapper.settle()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Tells where a step became infinite or NaN, in place of the bare error."""
        try:
            yield
        except NonFiniteError as error:
            raise explained(self.runner, error, self._recent) from error

    def _prepare_optimizer(self) -> None:
        """Makes the wrapper's counter count micro-batches of this loop."""
        wrapper = self.runner.optim_wrapper
        accumulation = getattr(wrapper, "accumulation", 1)
        if accumulation != self.plan.accumulate:
            raise ValueError(
                f"A step takes {self.plan.accumulate} micro-batches, but {type(wrapper).__name__} "
                f"updates after {accumulation}: use runner_type='SegmentationRunner' and "
                "optim_wrapper.type='MixedPrecisionOptimWrapper'."
            )
        # The runner has just counted in steps.
        wrapper.initialize_count_status(
            self.runner.model, self._iter * accumulation, self._max_iters * accumulation
        )

    def _skip_seen_data(self) -> None:
        """Continues the order of images after those that earlier steps have seen."""
        sampler = self._sampler()
        if hasattr(sampler, "set_start"):
            sampler.set_start(self._iter * self.plan.global_batch_size)
            # Workers may have read ahead from the start of the order: begin anew.
            iterator_class = type(self.dataloader_iterator)
            del self.dataloader_iterator
            self.dataloader_iterator: Any = iterator_class(self.dataloader)
            return
        self.runner.logger.info(
            f"Reading past the data of {self._iter} earlier steps: "
            f"{type(sampler).__name__} cannot jump (StepSampler can)."
        )
        for _ in range(self._iter * self.plan.accumulate):
            next(self.dataloader_iterator)

    def _sampler(self) -> Any:
        batch_sampler = getattr(self.dataloader, "batch_sampler", None)
        return getattr(batch_sampler, "sampler", None) or self.dataloader.sampler

    def _next_batches(self) -> list[dict[str, Any]]:
        """The micro-batches of one step."""
        try:
            with self.clock.waiting():
                return [next(self.dataloader_iterator) for _ in range(self.plan.accumulate)]
        except StopIteration:
            images, size = len(self.dataloader.dataset), self.plan.micro_batch_size
            raise ValueError(
                f"The training data give no batch: {images} images, {self.plan.world_size} "
                f"process(es) with batches of {size}, drop_last={self.dataloader.drop_last}. "
                f"Lower train_dataloader.batch_size to at most "
                f"{max(1, images // self.plan.world_size)}, add images, or use "
                "sampler=dict(type='StepSampler'), which repeats them."
            ) from None


@dataclass(frozen=True)
class BatchPlan:
    """A global batch in ``world_size * accumulate`` micro-batches.

    Args:
        global_batch_size (int): Images an optimiser step.
        world_size (int): Processes.
        micro_batch_size (int): Images a forward and process.
        accumulate (int): Forwards an optimiser step and process.
    """

    global_batch_size: int
    world_size: int
    micro_batch_size: int
    accumulate: int


def plan_batches(global_batch_size: int, *, world_size: int, batch_size: int) -> BatchPlan:
    """The fewest equal micro-batches of at most ``batch_size`` images.

    Args:
        global_batch_size (int): Images an optimiser step.
        world_size (int): Processes.
        batch_size (int): The most images a process can take at once.

    Raises:
        ValueError: If the images cannot be spread evenly.
    """
    for name, value in (
        ("train_cfg.global_batch_size", global_batch_size),
        ("train_dataloader.batch_size", batch_size),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a positive int.")
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise ValueError(
            f"train_cfg.global_batch_size {global_batch_size} cannot be shared by {world_size} "
            f"processes: make it a multiple of {world_size}."
        )
    micro = min(batch_size, share)
    accumulate, rest = divmod(share, micro)
    if rest:
        fits = [size for size in range(1, micro + 1) if share % size == 0]
        raise ValueError(
            f"Each process has {share} images a step (train_cfg.global_batch_size "
            f"{global_batch_size} over {world_size} processes), which is no multiple of "
            f"train_dataloader.batch_size {batch_size}: set it to one of {fits}."
        )
    return BatchPlan(global_batch_size, world_size, micro, accumulate)


def merge_batches(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One data batch out of micro-batches, as hooks see it: lists, tensors and dicts are joined."""
    if len(batches) == 1:
        return batches[0]
    merged: dict[str, Any] = {}
    for key in batches[0]:
        values = [batch[key] for batch in batches]
        if isinstance(values[0], torch.Tensor):
            merged[key] = torch.cat(values)
        elif isinstance(values[0], dict):
            merged[key] = merge_batches(values)
        else:
            merged[key] = [item for value in values for item in value]
    return merged
