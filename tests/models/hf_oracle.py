"""transformers' EoMT criterion as an independent oracle, made to use our random points."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import EomtConfig
from transformers.models.eomt import modeling_eomt

from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.matcher import matching_points
from mmseg_eomt.models.step import StepRandom

WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
NAMES = {"loss_cross_entropy": "loss_class", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


def one_hot_targets(
    labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks ``[n, H, W]`` and ids ``[n]`` of the classes that each image shows."""
    ids = [
        torch.tensor([c for c in image.unique().tolist() if c < num_classes]) for image in labels
    ]
    masks = [
        (image[None] == c[:, None, None]).to(dtype) for image, c in zip(labels, ids, strict=True)
    ]
    return masks, [c.long() for c in ids]


def hf_losses(
    monkeypatch: pytest.MonkeyPatch,
    ours: MaskClassificationLoss,
    predictions: Sequence[tuple[Tensor, Tensor]],
    labels: Tensor,
    random: StepRandom,
) -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """The oracle's weighted losses under our names, and its matches of each prediction.

    Its calls of ``torch.rand`` (one per image for matching, then candidates, then uniform points)
    are answered with the points that ours draws from ``random``.
    """
    config = EomtConfig(
        train_num_points=ours.num_points,
        oversample_ratio=ours.oversample_ratio,
        importance_sample_ratio=ours.importance_ratio,
        no_object_weight=0.1,
        class_weight=ours.class_weight,
        mask_weight=ours.mask_weight,
        dice_weight=ours.dice_weight,
    )
    config.num_labels = ours.num_classes
    criterion = modeling_eomt.EomtLoss(config, WEIGHTS)
    criterion.empty_weight = ours.class_weights
    masks, ids = one_hot_targets(labels, ours.num_classes)
    losses: dict[str, Tensor] = {}
    matches = []
    for number, (mask_logits, class_logits) in enumerate(predictions):
        pool, candidates = ours.pool_points(random, number, "cpu")
        shared = matching_points(random, ours.num_points, "cpu")
        answers = [shared] * len(labels) + [pool[:candidates], pool[candidates:]]

        def rand(*shape: int, device: torch.device, _answers: list[Tensor] = answers) -> Tensor:
            points = _answers.pop(0)
            assert points.shape == shape[1:]
            return points.repeat(shape[0], 1, 1)

        monkeypatch.setattr(modeling_eomt.torch, "rand", rand)
        found = criterion(mask_logits, class_logits, masks, ids)
        monkeypatch.undo()
        assert not answers, "the oracle no longer draws its points in the order we answer"
        answers = [shared] * len(labels)
        monkeypatch.setattr(
            modeling_eomt.torch, "rand", lambda *s, device, p=shared: p.repeat(s[0], 1, 1)
        )
        matches.append(criterion.matcher(mask_logits, class_logits, masks, ids))
        monkeypatch.undo()
        suffix = "" if number == len(predictions) - 1 else f"_block{number}"
        losses |= {NAMES[name] + suffix: WEIGHTS[name] * loss for name, loss in found.items()}
    return losses, matches
