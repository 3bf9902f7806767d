"""What is said about the training images while they are read."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook, LoggerHook
from mmseg.registry import HOOKS

from mmseg_eomt.datasets.skipping import SkippedFiles


@HOOKS.register_module()
class TrainingDataHook(Hook):  # type: ignore[misc]
    """Refuses too few images for a step, and says how many files were passed over.

    `UnlabelledImages` names each bad file once, in the process that meets it. This hook counts
    them over all processes: ``skipped_files`` in each log line once there is one, and a sentence
    at the end. More than ``max_skipped`` over all processes end the run.
    """

    priority = "ABOVE_NORMAL"  # before the line is written

    def before_train(self, runner: Any) -> None:
        """Compares the number of images with the global batch.

        Raises:
            ValueError: If a step takes more images than there are.
        """
        images, batch = len(runner.train_dataloader.dataset), runner.train_loop.global_batch_size
        if images < batch:
            raise ValueError(
                f"data: {images} images, but a step takes {batch} (train_cfg.global_batch_size): "
                "some would be in it twice, and KoLeo pushes equal images apart. Give at least "
                f"{batch} images, or lower the batch to at most {images}."
            )

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Counts at each log line.

        Raises:
            TooManyBadFilesError: If too many files are bad.
        """
        done = runner.iter + 1
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        if any(done % interval == 0 for interval in intervals):
            count = self._count(runner)
            if count:
                runner.message_hub.update_scalar("train/skipped_files", count)

    def after_train(self, runner: Any) -> None:
        """Sums up."""
        count = self._count(runner)
        if count:
            total = len(runner.train_dataloader.dataset)
            runner.logger.warning(
                f"{count} of {total} training images could not be read and were passed over; the "
                "log names them."
            )

    @staticmethod
    def _count(runner: Any) -> int:
        skipped: SkippedFiles | None = getattr(runner.train_dataloader.dataset, "skipped", None)
        if skipped is None:
            return 0
        # Several processes may have met the same file.
        met = {index for part in all_gather_object(skipped.indices()) for index in part}
        skipped.check(len(met), "see the log")
        return len(met)
