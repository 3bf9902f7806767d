from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmseg_eomt.deploy.agreement import LIMITS
from mmseg_eomt.deploy.metadata import DeployMetadata, default_size, deploy_metadata
from mmseg_eomt.deploy.pictures import fitted, graph_input, made_pictures, network_input
from mmseg_eomt.deploy.verify import Comparison, compare, plans
from tests.apis.tiny import tiny_header
from tests.deploy.lively import lively_header, lively_segmentor, picture


def metadata(**changes: Any) -> DeployMetadata:
    values: dict[str, Any] = {
        "height": 32, "width": 40, "batch_size": 1, "dynamic": "batch", "precision": "fp32",
        "outputs": "both", "include_preprocessing": False, "channel_order": None, "versions": {},
    }  # fmt: skip
    return deploy_metadata(lively_header(), **{**values, **changes})


class Changed:
    """The segmentor itself, its results changed: what a wrong export would do."""

    def __init__(self, segmentor: Any, change: Any) -> None:
        self.segmentor, self.change = segmentor, change
        self.batches: list[int] = []
        self.metadata = metadata()

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(images))
        with torch.inference_mode():
            scores = self.segmentor.encode_decode(torch.from_numpy(images), [{}] * len(images))
        labels, scores = self.change(scores.argmax(1).int().numpy(), scores.numpy())
        return {"labels": labels, "scores": scores}


def compared(change: Any, *, batch: int = 2) -> tuple[Comparison, Changed]:
    runner = Changed(lively_segmentor(lively_header()), change)
    pictures = made_pictures(3, (32, 40), channels=3)
    result = compare(runner, runner.segmentor, runner.metadata, pictures, batch=batch)
    return result, runner


def test_equal_results_are_equal_and_all_pictures_are_run_in_full_batches() -> None:
    result, runner = compared(lambda labels, scores: (labels, scores))
    assert (result.agreement, result.largest, result.mean) == (1.0, 0.0, 0.0)
    assert runner.batches == [2, 2]
    assert (result.pictures, result.size) == (3, (32, 40))
    assert result.classes >= 3
    assert result.within(LIMITS["fp32"])


def test_wrong_labels_scores_and_nan_are_found() -> None:
    def some_labels(labels: Any, scores: Any) -> Any:
        labels = labels.copy()
        labels[:, 0] = (labels[:, 0] + 1) % 5  # one row of 32
        return labels, scores

    result, _ = compared(some_labels)
    assert result.agreement == pytest.approx(1 - 1 / 32)
    assert not result.within(LIMITS["fp32"])
    result, _ = compared(lambda labels, scores: (labels, scores * 1.01))
    assert result.agreement == 1
    assert result.largest == pytest.approx(0.01, rel=1e-3)
    assert not result.within(LIMITS["fp32"])
    assert result.within(LIMITS["fp16"])
    result, _ = compared(lambda labels, scores: (labels, scores * np.nan))
    assert not result.within(LIMITS["int8"])


def test_batches_and_sizes_that_are_checked() -> None:
    assert list(plans(metadata(dynamic=""))) == [(1, (32, 40))]
    assert list(plans(metadata(dynamic="", batch_size=3))) == [(3, (32, 40))]
    sizes = [(1, (32, 40)), (2, (32, 40)), (8, (32, 40))]
    assert list(plans(metadata(batch_size=8))) == sizes
    found = list(plans(metadata(batch_size=8, dynamic=["batch", "height", "width"])))
    assert found[:3] == sizes
    batch, (height, width) = found[3]
    assert batch == 8
    assert height % 8 and width % 8  # no whole patches
    assert height > 32 and width < 40
    assert [size for _, size in plans(metadata(dynamic="width"))] == [(32, 40), (32, 29)]


def test_default_size_is_the_window_of_the_test() -> None:
    assert default_size(tiny_header(test_size=(32, 48))) == (32, 32)
    assert default_size(tiny_header(test_size=(32, 48), window_size=(16, 40))) == (16, 40)
    assert default_size(tiny_header(test_size=(32, 48), test_mode="whole")) == (32, 48)
    assert default_size(tiny_header(test_size=None, image_size=(24, 24))) == (24, 24)


def test_picture_of_another_shape_is_cut_from_the_middle() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200
    found = fitted(image, (20, 20), channels=3)
    assert found.shape == (20, 20, 3)
    assert (found == 200).all()
    assert fitted(picture((90, 30)), (40, 64), channels=3).shape == (40, 64, 3)


def test_channels_go_in_the_order_that_the_metadata_says() -> None:
    pixels = made_pictures(1, (32, 40), channels=3)  # BGR, as images are read
    rgb = graph_input(pixels, metadata(include_preprocessing=True))
    bgr = graph_input(pixels, metadata(include_preprocessing=True, channel_order="bgr"))
    np.testing.assert_array_equal(bgr, np.stack(pixels))
    np.testing.assert_array_equal(rgb, np.stack(pixels)[..., ::-1])
    header = lively_header()
    expected = (rgb.astype(np.float64) - header.mean) / header.std
    found = network_input(np.stack(pixels), header)
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_made_pictures_are_the_same_each_time_and_differ() -> None:
    first, again = (made_pictures(2, (48, 64), channels=4) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[0].shape == (48, 64, 4)
    assert (first[0] != first[1]).mean() > 0.9
