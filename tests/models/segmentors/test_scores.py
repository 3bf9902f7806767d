"""Scores in row strips against the plain computation at full size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.images.windows import cover
from mmseg_eomt.models.segmentors.canvas import View
from mmseg_eomt.models.segmentors.scores import label_map, score_map

Q, K = 6, 5


def _view(size: tuple[int, int], window: int, patch: int = 16, flip: str | None = None) -> View:
    shape, starts = cover(size, (window, window))
    padded = tuple(-(-side // patch) * patch for side in shape)
    masks = 4 * torch.randn(len(starts), Q, padded[0] // 4, padded[1] // 4)
    classes = torch.randn(len(starts), K, Q).softmax(1)
    return View(masks, classes, tuple(starts), shape, padded, size, flip)


def _plain(view: View, size: tuple[int, int]) -> torch.Tensor:
    """The published order, without strips: upsample, sigmoid, sum, average, resize."""
    total, count = torch.zeros(K, *view.size), torch.zeros(view.size)
    height, width = view.window
    for masks, classes, (top, left) in zip(view.masks, view.classes, view.starts, strict=True):
        full = F.interpolate(masks[None], view.padded, mode="bilinear")[0, :, :height, :width]
        part = torch.einsum("kq,qhw->khw", classes, full.sigmoid())
        total[:, top : top + height, left : left + width] += part
        count[top : top + height, left : left + width] += 1
    canvas = total / count
    if view.flip:
        canvas = canvas.flip(2 if view.flip == "horizontal" else 1)
    return F.interpolate(canvas[None], size, mode="bilinear")[0]


CASES = [
    ((64, 150), 64, (64, 150)),
    ((64, 150), 64, (201, 470)),
    ((150, 64), 64, (97, 41)),
    ((70, 50), 70, (140, 100)),
    ((61, 61), 64, (61, 61)),
]


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
@pytest.mark.parametrize(("canvas", "window", "size"), CASES)
def test_scores_equal_the_plain_computation(
    canvas: tuple[int, int], window: int, size: tuple[int, int], flip: str | None
) -> None:
    torch.manual_seed(0)
    view = _view(canvas, window, flip=flip)
    expected = _plain(view, size)
    torch.testing.assert_close(score_map([view], size), expected, rtol=1e-4, atol=1e-5)
    labels = label_map([view], size, memory=2**30)
    assert labels.shape == size and labels.dtype == torch.int32
    top = expected.topk(2, 0).values
    clear = top[0] - top[1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], expected.argmax(0).int()[clear])


@pytest.mark.parametrize(("canvas", "window", "size"), CASES)
def test_bounded_memory_gives_the_same_labels(
    canvas: tuple[int, int], window: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    views = [_view(canvas, window), _view(canvas, window, flip="horizontal")]
    whole = label_map(views, size, memory=2**40)
    for memory in (1, 400_000, 1_500_000):
        assert torch.equal(label_map(views, size, memory=memory), whole), memory


def test_views_of_different_sizes_are_averaged() -> None:
    torch.manual_seed(2)
    views = [_view((64, 100), 64), _view((96, 150), 96, flip="horizontal")]
    expected = (_plain(views[0], (50, 80)) + _plain(views[1], (50, 80))) / 2
    torch.testing.assert_close(score_map(views, (50, 80)), expected, rtol=1e-4, atol=1e-5)
