"""Mask logits with gradients for some rows, against the plain product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmseg_eomt.models.layers import MaskMaps, UpscaleBlock, mask_logits

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
