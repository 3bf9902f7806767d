"""Exact confusion counts, of whole images and of outlines (boundary IoU), and their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

IOU_METRICS = ("mIoU", "mDice", "mFscore")

Scores = dict[str, NDArray[np.float64]]


def count_confusion(
    prediction: Tensor, label: Tensor, *, num_classes: int, ignore_index: int, path: str
) -> Tensor:
    """Counts pixels by true and predicted class.

    Args:
        prediction (Tensor): Integer ``[H, W]``, 0 to K - 1.
        label (Tensor): Integer ``[H, W]``, 0 to K - 1 or ``ignore_index``.
        num_classes (int): K.
        ignore_index (int): Label of pixels that do not count.
        path (str): The image, named in errors.

    Returns:
        Tensor: ``int64 [K, K]`` on the device of ``prediction``; rows are true classes.

    Raises:
        ValueError: If the shapes differ or a counted value lies outside 0 to K - 1.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"{path}: the prediction is {tuple(prediction.shape)} but the label map is "
            f"{tuple(label.shape)} (height, width). Both must be at the image's original size: "
            "load the labels without resizing them."
        )
    label = label.to(device=prediction.device, dtype=torch.int64).flatten()
    prediction = prediction.to(torch.int64).flatten()
    k = num_classes
    # One bin more for ignored pixels and one for impossible ones: a single pass over the pixels
    # counts, ignores and checks, without gathering the valid ones first.
    impossible = (label < 0) | (label >= k) | (prediction < 0) | (prediction >= k)
    cell = torch.where(impossible, k * k + 1, label * k + prediction)
    cell = torch.where(label == ignore_index, k * k, cell)
    counts = torch.bincount(cell, minlength=k * k + 2)
    if int(counts[-1]):
        valid = label != ignore_index
        raise ValueError(_describe(label[valid], prediction[valid], k, ignore_index, path))
    return counts[: k * k].view(k, k)


def class_scores(confusion: NDArray[np.int64], metrics: Sequence[str], beta: float = 1.0) -> Scores:
    """Scores from 0 to 1 by mmseg's names and definitions.

    Args:
        confusion (ndarray): ``int64 [K, K]``, rows are true classes.
        metrics (Sequence[str]): Of ``'mIoU'`` (IoU, Acc), ``'mDice'`` (Dice, Acc) and
            ``'mFscore'`` (Fscore, Precision, Recall).
        beta (float): Weight of recall in Fscore. Defaults to 1.

    Returns:
        dict: ``aAcc`` as an array without axes, the others ``float64 [K]``; NaN where a class
        appears neither in labels nor in predictions (or not in what the score divides by).
    """
    hit = np.diagonal(confusion)
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: Scores = {"aAcc": np.asarray(hit.sum() / confusion.sum())}
        precision, recall = hit / predicted, hit / labelled
        if "mIoU" in metrics:
            scores.update(IoU=hit / (labelled + predicted - hit), Acc=recall)
        if "mDice" in metrics:
            scores.update(Dice=2 * hit / (labelled + predicted), Acc=recall)
        if "mFscore" in metrics:
            fscore = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
            scores.update(Fscore=fscore, Precision=precision, Recall=recall)
    return scores


def _describe(
    label: Tensor, prediction: Tensor, num_classes: int, ignore_index: int, path: str
) -> str:
    for name, values in (("label", label), ("prediction", prediction)):
        wrong = torch.unique(values[(values < 0) | (values >= num_classes)]).tolist()
        if wrong:
            found = f"{path}: {name} value {wrong[:5]} lies outside 0 to {num_classes - 1}"
            break
    return (
        f"{found} and is not the ignored {ignore_index}. Check that the dataset, the model and "
        "the metric have the same classes and the same ignore_index."
    )


# Stands for what belongs to no class: ignored pixels, and all outside the image.
_NOTHING = -1


def boundary_width(height: int, width: int, share: float) -> int:
    """Pixels of a band that is ``share`` of the image's diagonal wide; at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def count_boundary(
    prediction: Tensor, label: Tensor, *, num_classes: int, ignore_index: int, share: float
) -> Tensor:
    """Counts pixels near outlines (Cheng et al., Boundary IoU, CVPR 2021).

    A pixel of a class is near its outline if the square of ``2 * width + 1`` pixels around it holds
    anything else. The border of the image is an outline. So is the edge of ignored pixels, which
    are ignored in the prediction as well.

    Args:
        prediction (Tensor): Integer ``[H, W]``, 0 to K - 1 where the label counts.
        label (Tensor): Integer ``[H, W]``, 0 to K - 1 or ``ignore_index``.
        num_classes (int): K.
        ignore_index (int): Label of pixels that do not count.
        share (float): Width of the band over the image's diagonal.

    Returns:
        Tensor: ``int64 [3, K]`` on the device of ``prediction``: pixels in the bands of the label,
        of the prediction, and of both with the same class.
    """
    label = label.to(device=prediction.device, dtype=torch.int64)
    ignored = label == ignore_index
    truth = label.masked_fill(ignored, _NOTHING)
    found = prediction.to(torch.int64).masked_fill(ignored, _NOTHING)
    width = boundary_width(truth.shape[0], truth.shape[1], share)
    near_truth = _near_outline(truth, width) & ~ignored
    near_found = _near_outline(found, width) & ~ignored
    both = near_truth & near_found & (truth == found)
    return torch.stack(
        [
            torch.bincount(values[mask], minlength=num_classes)
            for values, mask in ((truth, near_truth), (found, near_found), (truth, both))
        ]
    )


def _near_outline(labels: Tensor, width: int) -> Tensor:
    """Whether the square around a pixel holds more than one label, for all classes at once."""
    values = functional.pad(labels[None, None].float(), (width,) * 4, value=_NOTHING)
    largest, smallest = values, -values
    for kernel in ((1, 2 * width + 1), (2 * width + 1, 1)):
        largest = functional.max_pool2d(largest, kernel, stride=1)
        smallest = functional.max_pool2d(smallest, kernel, stride=1)
    return (largest != -smallest)[0, 0]
