"""The head: errors, annealing, what does not depend on the number of processes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from mmseg_eomt.models import eomt_head
from mmseg_eomt.models.eomt_head import EoMTHead
from tests.models.hf_eomt import JOINT, SIZE, make_ours

SIZES = {"embed_dims": 32, "patch_size": 16, "num_joint_blocks": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": None}, "num_classes.*takes it from the dataset"),
        ({"num_classes": 0}, "num_classes >= 1, found 0"),
        ({"embed_dims": None}, "embed_dims.*from the backbone"),
        ({"num_queries": 0}, "num_queries >= 1"),
    ],
)
def test_missing_sizes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EoMTHead(**{"num_classes": 3, **SIZES, **changes})


@pytest.mark.parametrize(("probs", "message"), [([1.0], "1 mask prob"), ([0.5, 1.5], "1.5")])
def test_wrong_mask_probabilities_are_refused(probs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EoMTHead(3, **SIZES).set_mask_probs(probs)


@pytest.mark.parametrize(("patch", "blocks"), [(8, 1), (14, 2), (16, 2), (32, 3)])
def test_masks_are_read_at_a_quarter_of_the_input(patch: int, blocks: int) -> None:
    assert len(EoMTHead(3, **{**SIZES, "patch_size": patch}).upscale) == blocks


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_fully_annealed_masks_change_nothing_and_are_not_built(family: str) -> None:
    model = make_ours(family).train()
    model.decode_head.set_mask_probs([0.0] * JOINT)
    state = model.extract_feat(torch.randn(1, 3, SIZE, SIZE))
    with mock.patch.object(eomt_head, "reduce_to_grid", side_effect=AssertionError("mask built")):
        masks, classes = model.decode_head.all_predictions(state)[-1]
    expected_masks, expected_classes = model.decode_head(state)
    assert torch.equal(masks, expected_masks) and torch.equal(classes, expected_classes)


def test_share_of_opened_queries_follows_the_probability() -> None:
    head = EoMTHead(3, num_queries=50, **SIZES)
    head.set_mask_probs([0.3, 1.0])
    state = mock.Mock(grid=(2, 2))
    closed = torch.full((4, 50, 8, 8), -1.0)
    opened = []
    for step in range(40):
        head.set_step(step, seed=0)
        opened.append(head._patch_mask(closed, state, 0).all(-1).float().mean())
    assert abs(torch.stack(opened).mean() - 0.7) < 0.02
    assert not head._patch_mask(closed, state, 1).any()


def test_draws_follow_the_image_not_the_process_that_has_it() -> None:
    head = EoMTHead(3, num_queries=20, **SIZES)
    head.set_mask_probs([0.5, 0.5])
    state = mock.Mock(grid=(2, 2))
    closed = torch.full((4, 20, 8, 8), -1.0)
    head.set_step(1, seed=0)
    whole = head._patch_mask(closed, state, 0)
    for rank in range(2):
        with (
            mock.patch.object(eomt_head, "get_world_size", lambda: 2),
            mock.patch.object(eomt_head, "get_rank", lambda rank=rank: rank),
        ):
            assert torch.equal(head._patch_mask(closed[:2], state, 0), whole[rank::2])


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_recomputed_upscaling_has_the_same_gradients_and_keeps_less(family: str) -> None:
    torch.manual_seed(0)
    plain = make_ours(family).train()
    recomputing = make_ours(family, recompute_upscale=True).train()
    recomputing.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    gradients, kept = [], []
    for model in (plain, recomputing):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1],  # type: ignore[misc]
            lambda tensor: tensor,
        ):
            predictions = model.decode_head.all_predictions(model.extract_feat(images))
            sum(
                (masks**2).mean() + (classes**2).mean() for masks, classes in predictions
            ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        kept.append(sum(sizes))
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert kept[1] < 0.8 * kept[0]
