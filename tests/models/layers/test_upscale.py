"""Upscaling against the convolutions it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.models.layers import UpscaleBlock, reduce_to_grid


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
