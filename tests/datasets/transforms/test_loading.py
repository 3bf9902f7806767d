"""The validation rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmseg.datasets.transforms import PackSegInputs
from PIL import Image

from mmseg_eomt.datasets.transforms import PackByteInputs, ResizeShortSide
from mmseg_eomt.models.mask_loss import MaskClassificationLoss
from mmseg_eomt.models.step import StepRandom

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((360, 480), 512, (512, 683)),
        ((480, 360), 512, (683, 512)),
        ((512, 512), 512, (512, 512)),
        # 67 * 512 / 200 = 171.52 is rounded, not cut off (facts of the official code).
        ((200, 67), (512, 100), (512, 172)),
        ((3, 5), 2, (2, 3)),
        ((100, 300), (64, 256), (85, 256)),
    ],
)
def test_short_side_covers_the_window(
    shape: tuple[int, int], size: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = np.zeros(shape, np.uint8)
    out = ResizeShortSide(size)({"img": image, "gt_seg_map": labels, "ori_shape": shape})
    reference = Image.fromarray(image).resize(expected[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(out["img"], np.asarray(reference))
    assert out["img_shape"] == expected
    assert out["ori_shape"] == shape
    assert out["gt_seg_map"] is labels


def test_wrong_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        ResizeShortSide(0)


def sample(dtype: type) -> dict[str, object]:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 3, 255]), (6, 10)).astype(dtype)
    return {
        "img": rng.integers(0, 256, (6, 10, 3), dtype=np.uint8),
        "gt_seg_map": labels[:, ::-1],  # a view with negative strides, as flipping makes it
        "img_path": "a.jpg",
        "ori_shape": (6, 10),
    }


@pytest.mark.parametrize(("given", "packed"), [(np.uint8, torch.uint8), (np.int32, torch.int64)])
def test_all_but_the_width_of_byte_labels_is_as_in_mmseg(given: type, packed: torch.dtype) -> None:
    ours, theirs = (step.transform(sample(given)) for step in (PackByteInputs(), PackSegInputs()))
    assert torch.equal(ours["inputs"], theirs["inputs"])
    found, expected = (result["data_samples"] for result in (ours, theirs))
    assert found.metainfo == expected.metainfo
    assert found.gt_sem_seg.data.dtype == packed
    assert torch.equal(found.gt_sem_seg.data.long(), expected.gt_sem_seg.data)


def test_images_without_labels_are_packed() -> None:
    results = sample(np.uint8)
    del results["gt_seg_map"]
    assert "gt_sem_seg" not in PackByteInputs().transform(results)["data_samples"]


def test_loss_of_byte_labels_is_that_of_wide_ones() -> None:
    loss = MaskClassificationLoss(4, num_points=32)
    torch.manual_seed(0)
    predictions = [(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 5))]
    labels = torch.tensor([0, 3, 255], dtype=torch.uint8)[torch.randint(0, 3, (2, 16, 16))]
    narrow, wide = (
        loss(predictions, x, random=StepRandom(step=1)) for x in (labels, labels.long())
    )
    assert {k: v.item() for k, v in narrow.items()} == {k: v.item() for k, v in wide.items()}
    assert torch.equal(
        loss.count_targets(labels, num_queries=3), loss.count_targets(labels.long(), num_queries=3)
    )
