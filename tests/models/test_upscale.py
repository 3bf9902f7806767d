"""Upscaling against the convolutions it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.models.upscale import MaskMaps, UpscaleBlock, mask_logits, reduce_to_grid


@pytest.mark.parametrize(("activation", "plain"), [("gelu", F.gelu), ("silu", F.silu)])
def test_upscale_block_equals_its_convolutions(activation: str, plain: Any) -> None:
    torch.manual_seed(0)
    block = UpscaleBlock(8, activation=activation)
    torch.nn.init.normal_(block.norm.weight)
    features = torch.randn(2, 3, 5, 8)
    image = F.conv_transpose2d(
        features.permute(0, 3, 1, 2), block.conv1.weight, block.conv1.bias, stride=2
    )
    image = F.conv2d(plain(image), block.conv2.weight, padding=1, groups=8)
    expected = F.layer_norm(
        image.permute(0, 2, 3, 1), (8,), block.norm.weight, block.norm.bias, eps=1e-6
    )
    torch.testing.assert_close(block(features), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reduction_to_the_grid_is_bilinear(factor: int) -> None:
    logits = torch.randn(2, 3, 3 * factor, 5 * factor)
    expected = F.interpolate(logits, (3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(reduce_to_grid(logits, (3, 5)), expected, rtol=1e-5, atol=1e-6)


GRID, DIMS, QUERIES = (3, 4), 8, 5
# Of the first image queries 4 and 1, of the second query 2; slots as the matcher gives them.
INDEX, SLOTS, NUM_SLOTS = torch.tensor([4, 1, 7]), torch.tensor([0, 2, 1]), 3


def _parts() -> tuple[nn.ModuleList, Tensor, Tensor]:
    torch.manual_seed(0)
    blocks = nn.ModuleList([UpscaleBlock(DIMS), UpscaleBlock(DIMS)])
    for block in blocks:
        nn.init.normal_(block.norm.weight)
    queries = torch.randn(2, QUERIES, DIMS, requires_grad=True)
    patches = torch.randn(2, GRID[0] * GRID[1], DIMS, requires_grad=True)
    return blocks, queries, patches


def _gradients(rows: Tensor, blocks: nn.ModuleList, *leaves: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, rows.numel()).view(rows.shape)
    loss = (rows.float().sigmoid() * weights).sum()
    return list(torch.autograd.grad(loss, [*leaves, *blocks.parameters()]))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_values_and_gradients_of_the_plain_product(
    recompute: bool, dtype: torch.dtype
) -> None:
    blocks, queries, patches = _parts()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        masks = mask_logits(blocks, queries, patches, GRID)
        maps = MaskMaps(blocks, queries, patches, GRID, recompute=recompute)
    assert not maps.logits.requires_grad
    torch.testing.assert_close(maps.logits, masks)
    expected = _gradients(masks.flatten(0, 1)[INDEX], blocks, queries, patches)
    rows = maps.rows(INDEX, SLOTS, NUM_SLOTS)
    assert torch.equal(rows, maps.logits.flatten(0, 1)[INDEX])
    found = _gradients(rows, blocks, queries, patches)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for gradient, wanted in zip(found, expected, strict=True):
        assert (gradient - wanted).norm() <= tolerance * wanted.norm()


def test_no_match_gives_zero_gradients() -> None:
    blocks, queries, patches = _parts()
    nothing = torch.empty(0, dtype=torch.long)
    rows = MaskMaps(blocks, queries, patches, GRID).rows(nothing, nothing, 1)
    gradients = torch.autograd.grad(rows.sum(), [queries, patches, *blocks.parameters()])
    assert all(not gradient.any() for gradient in gradients)
