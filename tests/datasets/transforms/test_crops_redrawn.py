"""Redraws of crops, and crops that favour rare classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmseg_eomt.datasets.transforms import RareClassCrop, ScaleJitterCrop


def sample(labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    image = np.repeat(labels[..., None], 3, axis=2)  # so that image and labels can be compared
    return {"img": image, "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]}


def rare(rows: int = 200, cols: int = 300) -> np.ndarray[Any, Any]:
    """Class 0 everywhere, class 3 on 0.3 %, class 5 on 0.04 %, class 1 on a tenth."""
    labels = np.zeros((rows, cols), np.uint8)
    labels[:, :30] = 1
    labels[150:164, 250:263] = 3
    labels[20:25, 280:285] = 5
    return labels


def crops(step: Any, labels: np.ndarray[Any, Any], count: int = 200) -> list[Any]:
    np.random.seed(0)
    return [step(sample(labels)) for _ in range(count)]


def share_with(results: list[Any], class_id: int) -> float:
    return float(np.mean([(r["gt_seg_map"] == class_id).any() for r in results]))


def draws(monkeypatch: pytest.MonkeyPatch, step: ScaleJitterCrop) -> list[int]:
    counter = [0]
    plain = ScaleJitterCrop._draw

    def counting(self: Any, *arguments: Any) -> Any:
        counter[0] += 1
        return plain(self, *arguments)

    monkeypatch.setattr(ScaleJitterCrop, "_draw", counting)
    return counter


@pytest.mark.parametrize("kind", [ScaleJitterCrop, RareClassCrop])
def test_crops_are_redrawn_at_most_the_stated_number_of_times(
    monkeypatch: pytest.MonkeyPatch, kind: type[ScaleJitterCrop]
) -> None:
    step = kind(16, scale=(2, 2), max_tries=7)
    counter = draws(monkeypatch, step)
    np.random.seed(0)
    result = step(sample(np.full((40, 40), 255, np.uint8)))
    assert counter == [7]
    assert result["img"].shape == (16, 16, 3) and (result["gt_seg_map"] == 255).all()
    step(sample(np.zeros((40, 40), np.uint8)))
    assert counter == [8]  # the first one will do


def test_max_tries_defaults_to_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = draws(monkeypatch, ScaleJitterCrop(16))
    ScaleJitterCrop(16)(sample(np.full((40, 40), 255, np.uint8)))
    assert counter == [20]


def test_cat_max_ratio_bounds_the_largest_class_where_it_can() -> None:
    labels = np.zeros((100, 200), np.uint8)
    labels[:, 100:] = 1
    labels[:, ::4] = 255  # unlabelled pixels do not count
    step = ScaleJitterCrop(64, scale=(4, 4), cat_max_ratio=0.75, max_tries=100)
    for result in crops(step, labels, 40):
        kept = result["gt_seg_map"][result["gt_seg_map"] != 255]
        assert np.bincount(kept).max() <= 0.75 * kept.size
    plain = crops(ScaleJitterCrop(64, scale=(4, 4)), labels, 40)
    assert share_with(plain, 0) < 1


def test_if_no_crop_meets_the_ratio_the_last_labelled_one_is_kept() -> None:
    labels = np.full((64, 64), 255, np.uint8)
    labels[:, :32] = 2
    results = crops(ScaleJitterCrop(16, scale=(4, 4), cat_max_ratio=0.5), labels, 40)
    assert all((result["gt_seg_map"] == 2).any() for result in results)


def test_default_draws_are_those_of_always() -> None:
    # As the recipe drew them before there was a ratio: one uniform, two integers.
    labels = rare()
    for seed in range(20):
        np.random.seed(seed)
        result = ScaleJitterCrop(64)(sample(labels))
        state = np.random.random()
        np.random.seed(seed)
        factor = min(64 / 200, 64 / 300) * np.random.uniform(0.5, 2.0)
        rows, cols = int(200 * factor), int(300 * factor)
        np.random.randint(0, max(0, rows - 64) + 1)
        np.random.randint(0, max(0, cols - 64) + 1)
        assert state == np.random.random()
        assert result["scale_factor"] == (cols / 300, rows / 200)


def test_rare_classes_are_found_far_more_often() -> None:
    options: dict[str, Any] = {"scale": (2, 4)}
    plain = crops(ScaleJitterCrop(64, **options), rare())
    ratio = crops(ScaleJitterCrop(64, cat_max_ratio=0.75, **options), rare())
    chosen = crops(RareClassCrop(64, prob=1.0, **options), rare())
    for class_id in (3, 5):
        assert share_with(chosen, class_id) > 0.23  # one in four choices, and by chance
        assert share_with(chosen, class_id) > 2 * share_with(plain, class_id)
        assert share_with(chosen, class_id) > 2 * share_with(ratio, class_id)
    only = crops(RareClassCrop(64, prob=1.0, class_weights=[0, 0, 0, 1, 0, 0], **options), rare())
    assert share_with(only, 3) == 1.0


@pytest.mark.parametrize("scale", [(0.8, 1.0), (1.0, 6.0)])
def test_rare_crops_stay_in_the_image_and_show_what_their_labels_say(
    scale: tuple[float, float],
) -> None:
    labels = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8), np.ones((20, 20), np.uint8))
    for result in crops(RareClassCrop(40, prob=1.0, scale=scale), labels, 60):
        assert result["img"].shape == (40, 40, 3) and result["gt_seg_map"].shape == (40, 40)
        seen = result["gt_seg_map"] != 255
        across, down = result["scale_factor"]
        height, width = round(120 * down), round(160 * across)
        assert seen.sum() == min(40, height) * min(40, width)
        difference = result["img"][..., 0].astype(int) - result["gt_seg_map"]
        # Only edges are mixed; one cell beside it would be 1 or 8 everywhere, a random one 16.
        assert np.abs(difference[seen]).mean() < 0.9


def test_without_labels_or_choice_it_is_the_plain_crop() -> None:
    labels = rare()
    for step in (RareClassCrop(64, prob=0.0), RareClassCrop(64, class_weights=[0.0] * 6)):
        np.random.seed(1)
        result = step(sample(labels))
        assert result["gt_seg_map"].shape == (64, 64)
    image = {"img": sample(labels)["img"]}
    assert RareClassCrop(64)(image)["img"].shape == (64, 64, 3)


def test_wrong_options_are_named() -> None:
    for options, message in (
        ({"cat_max_ratio": 0}, "cat_max_ratio is 0; allowed"),
        ({"cat_max_ratio": 1.5}, "cat_max_ratio is 1.5; allowed"),
        ({"prob": 2}, "prob is 2; allowed"),
        ({"class_weights": [1, -1]}, "class_weights is"),
    ):
        with pytest.raises(ValueError, match=message):
            RareClassCrop(8, **options)
    with pytest.raises(ValueError, match="has 2 entries, but the image shows class 5"):
        RareClassCrop(8, prob=1.0, class_weights=[1, 1])(sample(rare()))
