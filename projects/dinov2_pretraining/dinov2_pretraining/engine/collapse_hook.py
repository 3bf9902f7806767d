"""Numbers that tell whether features collapse.

Shape legend: B images, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor

from dinov2_pretraining.engine.log_steps import is_logged
from mmseg_eomt.checkpoints.describe import unwrap


def feature_std(features: Tensor) -> float:
    """Spread of normalised features: 1 if they point in all directions alike, 0 if all are one.

    Args:
        features (Tensor): ``[B, C]``.

    Returns:
        float: Mean over channels of the standard deviation, times ``sqrt(C)``.
    """
    rows = F.normalize(features.float(), dim=-1)
    return float(rows.std(dim=0, unbiased=False).mean() * rows.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """How many directions the features use, from 0 (all alike) to ``min(B - 1, C)``.

    The exponential of the entropy of the normalised singular values of the centred features (Roy
    and Vetterli, EUSIPCO 2007).

    Args:
        features (Tensor): ``[B, C]``.
    """
    rows = features.double()
    rows = rows - rows.mean(dim=0)
    values = torch.linalg.svdvals(rows)
    # What rounding of the features (float32) leaves of a direction that is not there.
    noise = 1e-6 * float(features.abs().max()) * max(rows.shape) ** 0.5
    values = values[values > noise]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


@HOOKS.register_module()
class CollapseHook(Hook):  # type: ignore[misc]
    """Logs ``feature_std`` and ``feature_rank`` of the teacher's class tokens with each log line.

    They are those of the last micro-batch of all processes: the rank cannot exceed the number of
    its views less one, and is only to be compared with itself.
    """

    priority = "ABOVE_NORMAL"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Computes the numbers where they are logged."""
        model: Any = unwrap(runner.model)
        features: Tensor | None = model.seen_features
        if features is None or not is_logged(runner, batch_idx):
            return
        rows = torch.cat(all_gather(features))
        runner.message_hub.update_scalar("train/feature_std", feature_std(rows))
        runner.message_hub.update_scalar("train/feature_rank", effective_rank(rows))
