"""The segmentor as mmseg uses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor, EoMTTTAModel


def _make(patch_size: int = 16, **test_cfg: Any) -> EoMTSegmentor:
    torch.manual_seed(0)
    arch = {"embed_dims": 32, "depth": 3, "num_heads": 2, "patch_size": patch_size}
    model = EoMTSegmentor(
        backbone={"type": "DINOv3", "arch": arch, "image_size": 32, "num_joint_blocks": 2},
        decode_head={
            "type": "EoMTHead",
            "num_classes": 4,
            "num_queries": 6,
            "loss_decode": {"type": "MaskClassificationLoss", "num_points": 32},
        },
        data_preprocessor={"mean": [120.0] * 3, "std": [60.0] * 3, "bgr_to_rgb": True},
        test_cfg=test_cfg,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        # Each query is sure of a class of its own, so label maps have several classes.
        head = model.decode_head
        head.class_head.weight.normal_(std=2.0)
        head.mask_head[-1].weight.mul_(4.0)
    return model.eval()


def _data(*sizes: tuple[int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "inputs": [
            torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
            for size in sizes
        ],
        "data_samples": [
            SegDataSample(metainfo={"ori_shape": (2 * size[0], 2 * size[1] + 1)}) for size in sizes
        ],
    }


@pytest.mark.parametrize("mode", ["window", "whole"])
def test_images_of_any_sizes_share_forwards_and_keep_their_results(mode: str) -> None:
    model = _make(mode=mode, window_batch=3)
    sizes = [(40, 90), (90, 40), (40, 40), (33, 50)]
    together = model.test_step(_data(*sizes))
    single = _make(mode=mode, window_batch=1)
    for index, size in enumerate(sizes):
        data = _data(*sizes)
        alone = single.test_step({key: value[index : index + 1] for key, value in data.items()})[0]
        labels = together[index].pred_sem_seg.data
        assert labels.shape == (1, 2 * size[0], 2 * size[1] + 1)
        assert len(labels.unique()) > 1, "a plain picture would hide every fault"
        assert (labels == alone.pred_sem_seg.data).float().mean() > 0.999


def test_scores_come_only_when_asked_for() -> None:
    sample = _make().test_step(_data((32, 32)))[0]
    assert "seg_logits" not in sample
    sample = _make(return_scores=True).test_step(_data((32, 32)))[0]
    assert sample.seg_logits.data.shape == (4, 64, 65)
    assert torch.equal(sample.seg_logits.data.argmax(0).int(), sample.pred_sem_seg.data[0])


def test_tta_of_equal_views_changes_nothing_and_mirrored_views_are_mirrored_back() -> None:
    model = _make()
    plain = _data((32, 48))
    expected = model.test_step(_data((32, 48)))[0].pred_sem_seg.data
    tta = EoMTTTAModel(model)
    twice = {key: [value, value] for key, value in plain.items()}
    assert torch.equal(tta.test_step(twice)[0].pred_sem_seg.data, expected)
    # A mirrored view alone gives the label map of the mirrored image, mirrored back.
    mirrored = _data((32, 48))
    mirrored["inputs"] = [image.flip(2) for image in mirrored["inputs"]]
    seen = model.test_step({k: list(v) for k, v in mirrored.items()})[0].pred_sem_seg.data
    mirrored = _data((32, 48))
    mirrored["inputs"] = [image.flip(2) for image in mirrored["inputs"]]
    mirrored["data_samples"][0].set_metainfo({"flip": True, "flip_direction": "horizontal"})
    result = tta.test_step({key: [value] for key, value in mirrored.items()})[0].pred_sem_seg.data
    assert (result == seen.flip(2)).float().mean() > 0.999
    assert not torch.equal(seen, expected)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (50, 33)])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_training_takes_rectangles_and_sizes_that_are_no_multiple_of_the_patch(
    size: tuple[int, int], patch_size: int
) -> None:
    model = _make(patch_size).train()
    data = _data(size, size)
    for sample in data["data_samples"]:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, *size)))
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_micro_batches_of_one_step_add_up_to_the_whole_batch() -> None:
    """Gradient accumulation over images with unequal numbers of classes is exact."""
    model = _make().train()
    model.decode_head.set_mask_probs([0.5, 0.5])
    data = _data((32, 32), (32, 32), (32, 32), (32, 32))
    for index, sample in enumerate(data["data_samples"]):
        labels = torch.randint(0, index + 1, (1, 32, 32))
        labels[:, :8] = 255
        sample.gt_sem_seg = PixelData(data=labels)
    data = model.data_preprocessor(data, training=True)

    def gradients(batches: list[dict[str, Any]]) -> list[torch.Tensor]:
        model.zero_grad()
        model.decode_head.set_step(4, seed=0)
        if len(batches) > 1:
            model.prepare_accumulation(batches)
        for batch in batches:
            (model.parse_losses(model(**batch, mode="loss"))[0] / len(batches)).backward()
        return [p.grad.clone() for p in model.parameters()]

    whole = gradients([data])
    parts = [{key: value[i : i + 2] for key, value in data.items()} for i in (0, 2)]
    for expected, got in zip(whole, gradients(parts), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_a_model_builds_outside_a_runner() -> None:
    model = MODELS.build(
        {
            "type": "EoMTSegmentor",
            "backbone": {
                "type": "DINOv2",
                "arch": {"embed_dims": 32, "depth": 2, "num_heads": 2, "patch_size": 14},
                "image_size": 28,
                "num_joint_blocks": 1,
            },
            "decode_head": {"type": "EoMTHead", "num_classes": 2, "num_queries": 3},
        }
    )
    assert model.decode_head.embed_dims == 32 and len(model.decode_head.upscale) == 2


@pytest.mark.parametrize(
    ("test_cfg", "message"),
    [
        ({"mode": "slide"}, "'slide'.*'window' or 'whole'"),
        ({"stride": 4}, "unknown keys.*stride"),
        ({"window_batch": 0}, "window_batch is 0.*at least 1"),
    ],
)
def test_a_wrong_test_cfg_is_an_error(test_cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make(**test_cfg)
