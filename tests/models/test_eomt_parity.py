"""EoMT as a whole against transformers' implementation, same weights, fresh random inputs."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_eomt.models.matcher import matching_points
from tests.models.hf_eomt import JOINT, NUM_CLASSES, NUM_QUERIES, POINTS, SIZE, make_pair

FAMILIES = ("dinov2", "dinov3")


@pytest.mark.parametrize("family", FAMILIES)
def test_unmasked_forward_equals_transformers(family: str) -> None:
    ours, oracle = make_pair(family)
    oracle.attn_mask_probs.zero_()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        masks, classes = ours.decode_head(ours.extract_feat(images))
        expected = oracle(pixel_values=images)
    torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(classes, expected.class_queries_logits, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_every_masked_prediction_equals_transformers(family: str, probability: float) -> None:
    """All L + 1 predictions in training, with all queries masked and with half of them."""
    ours, oracle = make_pair(family)
    ours.train(), oracle.train()
    oracle.attn_mask_probs.fill_(probability)
    ours.decode_head.set_mask_probs([probability] * JOINT)
    ours.decode_head.set_step(3, seed=11)
    images = torch.randn(2, 3, SIZE, SIZE)
    collected = []
    predict = oracle.predict

    def spy(tokens: torch.Tensor) -> Any:
        collected.append(predict(tokens))
        return collected[-1]

    with (
        torch.no_grad(),
        mock.patch.object(oracle, "predict", spy),
        mock.patch("torch.rand", _replay(_annealing_draws(ours, 2))),
    ):
        oracle(pixel_values=images)
    with torch.no_grad():
        predictions = ours.decode_head.all_predictions(ours.extract_feat(images))
    assert len(predictions) == len(collected) == JOINT + 1
    for (masks, classes), (expected_masks, expected_classes) in zip(
        predictions, collected, strict=True
    ):
        torch.testing.assert_close(masks, expected_masks, rtol=5e-5, atol=5e-5)
        torch.testing.assert_close(classes, expected_classes, rtol=5e-5, atol=5e-5)
    unmasked = ours.decode_head(ours.extract_feat(images))[0]
    assert (unmasked - predictions[-1][0]).abs().max() > 1e-2, "the mask changes nothing here"


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_transformers(family: str) -> None:
    """Sum of all losses at half-annealed masks, and its gradient for every parameter."""
    ours, oracle = make_pair(family)
    ours.train(), oracle.train()
    ours.decode_head.set_mask_probs([0.5] * JOINT)
    ours.decode_head.set_step(5, seed=2)
    oracle.attn_mask_probs.fill_(0.5)
    images = torch.randn(2, 3, SIZE, SIZE)
    labels = torch.randint(0, NUM_CLASSES, (2, 4, 4)).repeat_interleave(16, 1)
    labels = labels.repeat_interleave(16, 2)
    labels[0, :20] = 255
    present = [[c for c in range(NUM_CLASSES) if (image == c).any()] for image in labels]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=image[None])) for image in labels]

    losses = ours.decode_head.loss(ours.extract_feat(images), samples)
    loss = sum(losses.values())
    draws = _annealing_draws(ours, 2) + _loss_draws(ours, [len(classes) for classes in present])
    with mock.patch("torch.rand", _replay(draws)):
        expected = oracle(
            pixel_values=images,
            mask_labels=[
                torch.stack([image == c for c in classes]).float()
                for image, classes in zip(labels, present, strict=True)
            ],
            class_labels=[torch.tensor(classes) for classes in present],
        ).loss
    assert len(losses) == 3 * (JOINT + 1)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=2e-5)

    loss.backward()
    expected.backward()
    from tests.models.hf_eomt import our_weights

    gradients = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    with mock.patch.object(type(oracle), "state_dict", lambda self: gradients):
        theirs = our_weights(family, oracle)
    compared = 0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, theirs[name], rtol=1e-3, atol=1e-4 * theirs[name].abs().max().item(),
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
        compared += 1
    assert compared == len(theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(SIZE, 150), (170, SIZE), (SIZE, SIZE)])
def test_windows_and_label_map_equal_transformers_post_processing(
    family: str, size: tuple[int, int]
) -> None:
    from transformers import EomtImageProcessorPil

    ours, oracle = make_pair(family)
    oracle.attn_mask_probs.zero_()
    processor = EomtImageProcessorPil(
        size={"shortest_edge": SIZE, "longest_edge": None}, do_split_image=True
    )
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    batch = processor(images=picture, return_tensors="pt")
    target = (size[0] * 2, size[1] * 2)
    with torch.no_grad():
        outputs = oracle(**batch)
        expected = processor.post_process_semantic_segmentation(
            outputs,
            target_sizes=[target],
            size={"shortest_edge": SIZE, "longest_edge": None},
            return_segmentation_scores=True,
        )[0]
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        image = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean[:, None, None]) / (
            std[:, None, None]
        )
        sample = SegDataSample(metainfo={"ori_shape": target})
        ours.test_cfg["return_scores"] = True
        scores = ours.predict([image], [sample])[0].seg_logits.data
        ours.test_cfg["return_scores"] = False
        labels = ours.predict([image], [sample])[0].pred_sem_seg.data[0]
    # transformers resizes to the original size before it merges only one axis: same averages.
    torch.testing.assert_close(scores, expected.segmentation_scores, rtol=1e-4, atol=1e-4)
    assert (labels == expected.segmentation).float().mean() > 0.9999


def _replay(draws: list[torch.Tensor]) -> Any:
    """A ``torch.rand`` for the oracle that returns our numbers, in the order it asks for them."""
    waiting = list(draws)

    def rand(*shape: Any, **_: Any) -> torch.Tensor:
        shape = tuple(shape[0]) if isinstance(shape[0], (tuple, list)) else shape
        numbers = waiting.pop(0)
        assert numbers.shape == shape, (numbers.shape, shape)
        return numbers

    return rand


def _annealing_draws(ours: Any, batch: int) -> list[torch.Tensor]:
    """The numbers that open masks, as the oracle draws them: ``[B, Q]`` per masked block."""
    head = ours.decode_head
    return [
        torch.stack([head.random.uniform(f"annealing/{i}/{r}", NUM_QUERIES) for r in range(batch)])
        for i, probability in enumerate(head.mask_probs)
        if 0.0 < probability < 1.0
    ]  # fmt: skip


def _loss_draws(ours: Any, masks_per_image: list[int]) -> list[torch.Tensor]:
    """Our shared points, repeated for every image and mask as the oracle asks for them."""
    head = ours.decode_head
    total = sum(masks_per_image)
    matching = matching_points(head.random, POINTS, "cpu")
    draws = []
    for index in range(JOINT + 1):
        draws += [matching[None]] * len(masks_per_image)
        pool, candidates = head.loss_decode.pool_points(head.random, index, "cpu")
        draws += [
            part.expand(total, -1, -1).contiguous()
            for part in (pool[:candidates], pool[candidates:])
        ]
    return draws
