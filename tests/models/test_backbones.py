"""What the head and the training loop rely on, for every kind of backbone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from mmseg_eomt.models.vit import ViTBackbone

V2 = {"embed_dims": 32, "depth": 4, "num_heads": 2, "patch_size": 14, "init_values": 0.5}
V3 = {"embed_dims": 32, "depth": 4, "num_heads": 2, "patch_size": 16, "init_values": 0.5}
TIMM_V2 = {"embed_dim": 32, "depth": 4, "num_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "dinov2": {"type": "DINOv2", "arch": V2},
    "dinov2-noreg": {"type": "DINOv2", "arch": V2, "registers": False},
    "dinov2-gated": {"type": "DINOv2", "arch": {**V2, "gated_mlp": True}},
    "dinov3": {"type": "DINOv3", "arch": V3},
    "dinov3-gated": {"type": "DINOv3", "arch": {**V3, "gated_mlp": True}},
    "timm-vit": {"type": "TimmViT", "name": "vit_tiny_patch16_224", "model_kwargs": TIMM_V2},
    "timm-eva02": {"type": "TimmViT", "name": "eva02_tiny_patch14_224", "model_kwargs": TIMM_V2},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, **options: Any) -> ViTBackbone:
    torch.manual_seed(0)
    config = {"image_size": 64, "num_joint_blocks": 2, **KINDS[kind], **options}
    backbone: ViTBackbone = MODELS.build(config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


def finish(backbone: ViTBackbone, images: Tensor) -> Tensor:
    """All tokens after the joint blocks and the norm, ``[B, P + N, C]``."""
    state = backbone(images)
    tokens = state.tokens
    for block in state.blocks:
        tokens = block(tokens, **({} if state.rope is None else {"rope": state.rope}))
    return state.norm(tokens)


@pytest.mark.parametrize("size", [(64, 64), (50, 97), (112, 33), (1, 70)])
def test_any_size_is_padded_and_never_cut(kind: str, size: tuple[int, int]) -> None:
    backbone = make(kind).eval()
    patch = backbone.patch_size
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        state = backbone(images)
        height, width = (-(-side // patch) for side in size)
        assert state.grid == (height, width)
        assert state.image_size == size
        assert state.patch_size == patch
        assert state.num_prefix_tokens == backbone.num_prefix_tokens
        prefix = backbone.num_prefix_tokens
        assert state.tokens.shape == (2, prefix + height * width, 32)
        assert len(state.blocks) == backbone.num_joint_blocks == 2
        padded = F.pad(images, (0, width * patch - size[1], 0, height * patch - size[0]))
        expected = backbone.vit.forward_features(padded)
        assert torch.allclose(finish(backbone, images), expected, atol=2e-5)
        changed = images.clone()
        changed[:, :, -1, -1] += 9  # the last pixel counts
        assert not torch.allclose(backbone(changed).tokens, state.tokens)


def test_attributes_are_those_of_the_module(kind: str) -> None:
    backbone = make(kind, in_channels=4)
    assert (backbone.embed_dims, backbone.depth, backbone.num_heads) == (32, 4, 2)
    assert backbone.in_channels == 4
    assert backbone.eval()(torch.randn(1, 4, 20, 20)).tokens.shape[-1] == 32
    state = backbone(torch.randn(1, 4, 20, 20))
    rotary = kind in ("dinov3", "dinov3-gated", "timm-eva02")
    assert (state.rope is not None) == rotary


def test_save_and_load_give_the_same(kind: str) -> None:
    first, second = make(kind).eval(), make(kind, image_size=64).eval()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    second.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    images = torch.randn(1, 3, 40, 64)
    assert torch.equal(finish(first, images), finish(second, images))
    assert all(name.startswith("vit.") for name in first.state_dict())


def test_other_patch_size(kind: str) -> None:
    state = make(kind, patch_size=8).eval()(torch.randn(1, 3, 30, 40))
    assert state.grid == (4, 5) and state.patch_size == 8


def test_every_parameter_learns_and_has_a_block(kind: str) -> None:
    backbone = make(kind).train()
    finish(backbone, torch.randn(2, 3, 33, 70)).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        parts = name.split(".")
        index = int(parts[2]) if parts[1] == "blocks" else 3 if parts[1] == "norm" else 0
        assert backbone.get_block_index(name) == index


def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    images = torch.randn(2, 3, 40, 40)
    gradients = []
    for with_cp in (False, True):
        backbone = make(kind, with_cp=with_cp, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        finish(backbone, images).square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(("frozen", "count"), [(1, 1), ("encoder", 2), (4, 4)])
def test_frozen_parts_stay_as_they_are(kind: str, frozen: Any, count: int) -> None:
    backbone = make(kind, frozen_blocks=frozen, drop_path_rate=0.5).train()
    for index, block in enumerate(backbone.vit.blocks):
        assert block.training == (index >= count)
    assert not backbone.vit.patch_embed.training
    finish(backbone, torch.randn(1, 3, 40, 40)).sum().backward()
    for name, parameter in backbone.named_parameters():
        learns = "vit.norm." in name or (
            "blocks" in name and backbone.get_block_index(name) >= count
        )
        assert parameter.requires_grad == learns, name
        assert learns or parameter.grad is None, name


def test_tables_are_made_once_a_grid_and_survive_inference_mode(kind: str) -> None:
    backbone = make(kind).eval()
    images = torch.randn(1, 3, 40, 70)
    with torch.inference_mode():
        first = backbone(images)
    second = backbone(images)
    if first.rope is not None:
        assert second.rope is first.rope
        assert first.rope.dtype == torch.float32
        assert first.rope.shape == (first.grid[0] * first.grid[1], 2 * 16)
    finish(backbone.train(), images).sum().backward()  # tables are no inference tensors


def test_low_precision(kind: str) -> None:
    backbone = make(kind).eval()
    images = torch.randn(1, 3, 40, 70)
    exact = finish(backbone, images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = finish(backbone, images)
    assert (rough.float() - exact).abs().max() < 0.2
    rope = backbone(images).rope
    assert rope is None or rope.dtype == torch.float32


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"], indirect=True)  # seconds each
def test_compiles_without_a_break(kind: str) -> None:
    backbone = make(kind).eval()
    images = torch.randn(1, 3, 40, 70)
    backbone(images)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images).tokens, backbone(images).tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_joint_blocks": 5}, "1 to 4"),
        ({"frozen_blocks": 9}, "'encoder'"),
        ({"frozen_blocks": "all"}, "'encoder'"),
        ({"pretrained": "x.pth", "init_cfg": {"type": "Constant"}}, "Keep one"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make("dinov3", **options)
