"""Boundary IoU against its definition: masks minus their erosion, one class at a time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from mmseg_eomt.evaluation import SegmentationMetric
from mmseg_eomt.evaluation.confusion import boundary_width, count_boundary

K = 4


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Label map of smooth regions."""
    noise = np.random.default_rng(seed).random((*size, K)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4).argmax(-1).astype(np.int64)


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """By OpenCV's erosion, as the authors' code has it; outside the image is background."""
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & ~eroded.astype(bool)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_counts_are_those_of_erosion(share: float) -> None:
    size = (61, 83)
    label, prediction = blobs(0, size), blobs(1, size)
    prediction[:, :50] = label[:, :50]
    label[20:30, 15:70] = 255
    width = boundary_width(*size, share)
    valid = label != 255
    expected = np.zeros((3, K), np.int64)
    for k in range(K):
        truth = band((label == k) & valid, width)
        found = band((prediction == k) & valid, width)
        expected[:, k] = truth.sum(), found.sum(), (truth & found).sum()
    counts = count_boundary(
        torch.from_numpy(prediction),
        torch.from_numpy(label),
        num_classes=K,
        ignore_index=255,
        share=share,
    )
    assert counts.tolist() == expected.tolist()
    assert expected[2].min() > 0


def test_score_is_the_overlap_of_bands_over_all_images() -> None:
    metric = SegmentationMetric(boundary=0.03)
    metric.dataset_meta = {"classes": list("abcd")}
    total = np.zeros((3, K), np.int64)
    for seed, size in ((2, (40, 50)), (4, (64, 32))):
        label, prediction = blobs(seed, size), blobs(seed + 1, size)
        width = boundary_width(*size, 0.03)
        for k in range(K):
            truth, found = band(label == k, width), band(prediction == k, width)
            total[:, k] += truth.sum(), found.sum(), (truth & found).sum()
        sample = {
            "pred_sem_seg": {"data": torch.from_numpy(prediction)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(label)[None]},
        }
        metric.process({}, [sample])
    expected = 100 * np.mean(total[2] / (total[0] + total[1] - total[2]))
    assert metric.evaluate(2)["mBoundaryIoU"] == pytest.approx(expected, rel=1e-12)


def test_width_follows_the_diagonal() -> None:
    assert boundary_width(300, 400, 0.02) == 10
    assert boundary_width(3, 4, 0.02) == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_wrong_width_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.02"):
        SegmentationMetric(boundary=share)
