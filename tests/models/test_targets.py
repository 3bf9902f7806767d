"""Point sampling against grid_sample on one-hot masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.models.mask_loss import chosen_values, smallest
from mmseg_eomt.models.matcher import PointSampler, softplus_sum
from mmseg_eomt.models.targets import LabelTargets, sample_labels, sample_maps

CLASSES = 5


def targets(size: tuple[int, int] = (13, 21)) -> LabelTargets:
    labels = torch.randint(0, CLASSES + 1, (3, *size))
    labels[labels == CLASSES] = 255
    return LabelTargets.from_labels(labels, num_classes=CLASSES, ignore_index=255)


def one_hot(found: LabelTargets) -> torch.Tensor:
    """Masks ``[B, K + 1, H, W]``, the last one of ignored pixels."""
    return F.one_hot(found.codes.long(), CLASSES + 1).movedim(-1, 1).float()


@pytest.mark.parametrize("per_image", [False, True], ids=["shared points", "points per image"])
@pytest.mark.parametrize("size", [(13, 21), (512, 512), (1, 3)])
def test_label_values_equal_grid_sample_of_one_hot_masks(
    per_image: bool, size: tuple[int, int]
) -> None:
    found = targets(size)
    points = torch.rand(3, 400, 2) if per_image else torch.rand(400, 2)
    # Corners and edges, where neighbours lie outside the map.
    edges = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0], [0.5, 0], [0.001, 0.5]])
    points = torch.cat([points, edges.expand(*points.shape[:-2], 6, 2)], dim=-2)
    samples = sample_labels(found.codes, points, ignored_code=CLASSES)
    slots = torch.arange(CLASSES + 1).expand(3, -1)
    values = samples.class_values(slots, CLASSES + 1)
    grid = (2 * points - 1).expand(3, -1, -1)[:, :, None]
    expected = F.grid_sample(one_hot(found), grid, align_corners=False)[..., 0]
    # Pixel coordinates of a 512 px map are known to 3e-5 in float32.
    torch.testing.assert_close(values, expected, atol=5e-5, rtol=0)
    ignored = F.grid_sample(
        one_hot(found)[:, -1:], grid, padding_mode="border", align_corners=False
    )[:, 0, :, 0]
    torch.testing.assert_close(samples.labelled_share(), 1 - ignored, atol=5e-5, rtol=0)


def test_unwanted_classes_leave_no_trace_in_class_values() -> None:
    found = targets()
    samples = sample_labels(found.codes, torch.rand(50, 2), ignored_code=CLASSES)
    everything = samples.class_values(torch.arange(CLASSES + 1).expand(3, -1), CLASSES + 1)
    only_two = torch.full((3, CLASSES + 1), 1)
    only_two[:, 2] = 0
    assert torch.equal(samples.class_values(only_two, 1)[:, 0], everything[:, 2])


@pytest.mark.parametrize("code", [0, CLASSES], ids=["labelled", "ignored"])
def test_labelled_share_is_exact_where_all_pixels_agree(code: int) -> None:
    codes = torch.full((1, 7, 9), code, dtype=torch.uint8)
    points = torch.cat([torch.rand(200, 2), torch.tensor([[0.0, 0.0], [0.01, 0.99]])])
    share = sample_labels(codes, points, ignored_code=CLASSES).labelled_share()
    assert torch.equal(share, torch.full((1, 202), float(code == 0)))


def test_shared_points_sample_maps_as_points_per_map() -> None:
    maps, points = torch.randn(6, 9, 11), torch.rand(30, 2)
    expected = F.grid_sample(maps[None], 2 * points[None, :, None] - 1, align_corners=False)
    torch.testing.assert_close(sample_maps(maps, points), expected[0, :, :, 0])
    repeated = points.repeat(6, 1, 1)
    torch.testing.assert_close(sample_maps(maps, repeated), expected[0, :, :, 0])


@pytest.mark.parametrize("size", [(9, 11), (128, 128), (1, 3)])
def test_sampling_by_point_gives_the_same_numbers(size: tuple[int, int]) -> None:
    maps = torch.randn(6, *size)
    points = torch.cat([torch.rand(300, 2), torch.tensor([[0.0, 0.0], [0.999, 0.001]])])
    torch.testing.assert_close(
        PointSampler(points, (maps.shape[-2], maps.shape[-1]))(maps),
        sample_maps(maps, points).t(),
        atol=1e-5,
        rtol=0,
    )


def test_chosen_values_equal_sampling_at_the_chosen_points_with_their_gradient() -> None:
    maps = torch.randn(4, 9, 11, requires_grad=True)
    pool = torch.rand(50, 2)
    index = torch.stack([torch.randperm(50)[:20] for _ in range(4)])
    weights = torch.randn(4, 20)
    expected = sample_maps(maps, pool[index])
    found = chosen_values(maps, sample_maps(maps.detach(), pool), index, pool)
    torch.testing.assert_close(found, expected)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), maps)
    (gradient,) = torch.autograd.grad((weights * found).sum(), maps)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("count", [0, 1, 17, 40])
@pytest.mark.parametrize("kind", ["distinct", "tied", "infinite"])
def test_smallest_finds_what_topk_finds(count: int, kind: str) -> None:
    rows = torch.rand(5, 40)
    if kind == "tied":
        rows = (rows * 4).floor()
    elif kind == "infinite":
        rows[:, ::2] = torch.inf
    index = smallest(rows, count)
    expected = rows.topk(count, dim=1, largest=False, sorted=True).values
    assert torch.equal(rows.gather(1, index).sort(1).values, expected)
    assert all(len(set(places.tolist())) == count for places in index), "a place twice"


@pytest.mark.parametrize("num_points", [1, 64, 100])
def test_softplus_sum_is_the_sum_of_softplus(num_points: int) -> None:
    logits = torch.randn(num_points, 3) * torch.tensor([1.0, 30.0, 300.0])
    expected = F.softplus(logits.double()).sum(0)
    torch.testing.assert_close(
        softplus_sum(logits, logits.sigmoid()).double(), expected, atol=1e-5, rtol=1e-6
    )
