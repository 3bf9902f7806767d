"""Rotary augmentation, initialisation, and timm models that cannot carry EoMT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmseg_eomt.models.backbones import DINOv2, DINOv3, TimmViT
from mmseg_eomt.models.positions import GridCache, rope_angles, rope_table

ARCH = {"embed_dims": 32, "depth": 2, "num_heads": 2, "patch_size": 16}


def dinov3(**options: Any) -> DINOv3:
    return DINOv3(arch=ARCH, image_size=64, num_joint_blocks=1, **options)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 5)])
def test_rotary_table_is_timms(grid: tuple[int, int]) -> None:
    angles = rope_angles(grid, head_dims=16, temperature=100.0, device=torch.device("cpu"))
    expected = dinov3().vit.rope.get_embed(shape=grid)
    assert torch.allclose(rope_table(angles), expected, atol=1e-6)


def test_rescaled_positions_scale_all_angles_by_one_factor_in_range() -> None:
    backbone = dinov3(rope_rescale=2.0)
    plain = backbone.eval()(torch.zeros(1, 3, 64, 64)).rope
    angles = rope_angles((4, 4), head_dims=16, temperature=100.0, device=torch.device("cpu"))
    slowest = angles[:, 3]  # stays below a half turn at twice its speed, so it can be read back
    factors = []
    backbone.train()
    for _ in range(40):
        rope: Tensor = backbone(torch.zeros(1, 3, 64, 64)).rope
        found = torch.atan2(rope[:, 3], rope[:, 19]) / slowest
        assert torch.allclose(found, found[0].expand(16), atol=1e-4)
        assert torch.allclose(rope, rope_table(angles * found[0]), atol=1e-4)
        factors.append(math.log(found[0].item()))
    assert all(abs(factor) <= math.log(2) + 1e-4 for factor in factors)
    assert min(factors) < -0.2 and max(factors) > 0.2
    assert plain is not None
    assert torch.equal(backbone.eval()(torch.zeros(1, 3, 64, 64)).rope, plain)


def test_rescaling_needs_rotary_positions_and_a_factor() -> None:
    with pytest.raises(ValueError, match="rope_rescale"):
        DINOv2(arch=ARCH, image_size=64, num_joint_blocks=1, rope_rescale=2.0)
    with pytest.raises(ValueError, match="at least 1"):
        dinov3(rope_rescale=0.5)


def test_cache_forgets_the_oldest() -> None:
    cache = GridCache(capacity=2)
    tables = [cache.get(key, lambda: torch.zeros(1)) for key in "abc"]
    assert cache.get("c", lambda: torch.ones(1)) is tables[2]
    assert cache.get("a", lambda: torch.ones(1)) is not tables[0]


def test_init_weights_leaves_timms_initialisation_alone() -> None:
    backbone = dinov3()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(before[name], v) for name, v in backbone.state_dict().items())


def test_missing_pretrained_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        dinov3(pretrained="nowhere.pth").init_weights()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_tiny_patch16_dinosaur", "vit_tiny_patch16_224"),
        ("resnet18", "patch embedding"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_small_patch16_rope_mixed_224", "differ from block to block"),
    ],
)
def test_unfit_timm_models_say_why(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TimmViT(name)
