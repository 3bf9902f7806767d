"""Matching against transformers' matcher, and what it must refuse."""

from __future__ import annotations

import pytest
import torch
from mmseg.registry import MODELS

from mmseg_eomt.models import matcher
from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.matcher import HungarianMatcher
from mmseg_eomt.models.step import StepRandom
from mmseg_eomt.models.targets import LabelTargets
from tests.models.hf_oracle import hf_losses
from tests.models.scenes import make_labels, make_predictions


def to_targets(labels: torch.Tensor, num_classes: int) -> LabelTargets:
    return LabelTargets.from_labels(labels, num_classes=num_classes, ignore_index=255)


@pytest.mark.parametrize("queries", [12, 3], ids=["queries to spare", "more classes than queries"])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, seed: int, queries: int
) -> None:
    torch.manual_seed(seed)
    labels, predictions = make_labels(7), make_predictions(7, queries=queries)
    loss, random = MaskClassificationLoss(7, num_points=300), StepRandom(seed=seed)
    _, expected = hf_losses(monkeypatch, loss, predictions, labels, random)
    found = loss.matcher(predictions, to_targets(labels, 7), random=random)
    for number, images in enumerate(expected):
        shown = [sorted(set(image.unique().tolist()) - {255}) for image in labels]
        wanted = [
            (image * queries + int(q), shown[image][int(slot)], int(slot))
            for image, pairs in enumerate(images)
            for q, slot in zip(*pairs, strict=True)
        ]
        rows = (found.queries[number], found.classes[number], found.slots[number])
        assert list(zip(*(row.tolist() for row in rows), strict=True)) == wanted


@pytest.mark.parametrize("rule", ["negative", "skip"])
def test_costs_do_not_depend_on_how_images_are_grouped(
    monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    labels, predictions = make_labels(7), make_predictions(7)
    points = torch.rand(200, 2)
    module = MODELS.build({"type": "HungarianMatcher", "num_points": 200, "ignore_rule": rule})
    assert isinstance(module, HungarianMatcher)
    with torch.no_grad():
        together = module.costs(predictions, to_targets(labels, 7), points)
        monkeypatch.setattr(matcher, "_GROUP_LIMIT", {"cpu": 1})
        apart = module.costs(predictions, to_targets(labels, 7), points)
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_are_told_and_do_not_stop_one_process(value: float) -> None:
    labels, predictions = make_labels(7), make_predictions(7)
    targets, matcher_ = to_targets(labels, 7), HungarianMatcher(num_points=50)
    assert matcher_(predictions, targets, random=StepRandom()).finite
    with torch.no_grad():
        predictions[1][0][2, 4] = value
    matches = matcher_(predictions, targets, random=StepRandom())
    assert not matches.finite
    assert matches.queries.shape == matches.classes.shape  # every parameter still has a part in it


@pytest.mark.parametrize("value", [7, 254, -1])
def test_label_out_of_range_is_named_with_the_allowed_range(value: int) -> None:
    labels = make_labels(7)
    labels[1, 3, 3] = value
    with pytest.raises(ValueError, match=rf"the value {value}; .* ids 0 to 6 and ignore_index=255"):
        HungarianMatcher(num_points=50)(
            make_predictions(7), to_targets(labels, 7), random=StepRandom()
        )


def test_unknown_ignore_rule_and_zero_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'negative', 'skip'.*'drop'"):
        HungarianMatcher(ignore_rule="drop")
    with pytest.raises(ValueError, match="all matching weights are 0"):
        HungarianMatcher(class_weight=0, mask_weight=0, dice_weight=0)
