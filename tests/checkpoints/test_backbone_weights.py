"""Meta's, timm's and our own layouts, and what a file that does not fit is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.checkpoints.backbone_weights import load_pretrained, locate
from mmseg_eomt.checkpoints.foreign.timm import registered_source
from mmseg_eomt.models.architectures import ARCHITECTURES
from mmseg_eomt.models.backbones import DINOv2, DINOv3, TimmViT
from mmseg_eomt.models.vit import ViTBackbone

V2 = {"embed_dims": 32, "depth": 2, "num_heads": 2, "patch_size": 14}
V3 = {"embed_dims": 32, "depth": 2, "num_heads": 2, "patch_size": 16}


def make(family: str, **arch: Any) -> ViTBackbone:
    torch.manual_seed(0)
    if family == "dinov2":
        backbone = DINOv2(arch={**V2, **arch}, image_size=56, num_joint_blocks=1)
    else:
        backbone = DINOv3(arch={**V3, **arch}, image_size=64, num_joint_blocks=1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.3)
    return backbone


def as_meta(backbone: ViTBackbone) -> dict[str, Tensor]:
    """The weights of ``backbone`` under Meta's names, with all that Meta's files hold beside."""
    weights = {n: v.clone() for n, v in backbone.vit.state_dict().items()}
    channels = backbone.embed_dims
    if backbone.vit.pos_embed is not None:  # DINOv2
        if "reg_token" in weights:
            own = torch.randn(1, 1, channels)  # position of the cls token
            weights["register_tokens"] = weights.pop("reg_token")
            weights["cls_token"] = weights["cls_token"] - own
            weights["pos_embed"] = torch.cat((own, weights["pos_embed"]), dim=1)
        packed = backbone.vit.blocks[0].mlp.fc1.weight.shape[0] != 4 * channels
        if packed:
            weights = {
                n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v
                for n, v in weights.items()
            }
        return {"mask_token": torch.zeros(1, channels), **weights}
    renamed: dict[str, Tensor] = {
        "mask_token": torch.zeros(1, channels),
        "storage_tokens": weights.pop("reg_token"),
        "rope_embed.periods": torch.ones(4),
        "local_cls_norm.weight": torch.ones(channels),
        "local_cls_norm.bias": torch.ones(channels),
    }
    for name, value in weights.items():
        if name.endswith("q_bias"):
            unused = torch.full((channels,), float("nan"))  # as Meta masks the key's bias
            v_bias = weights[name.replace("q_bias", "v_bias")]
            base = name.replace("q_bias", "qkv.bias")
            renamed[base] = torch.cat((value, unused, v_bias))
            renamed[f"{base}_mask"] = torch.ones(3 * channels)
        elif not name.endswith("v_bias"):
            for ours, theirs in (
                ("gamma_1", "ls1.gamma"),
                ("gamma_2", "ls2.gamma"),
                ("mlp.fc1_g", "mlp.w1"),
                ("mlp.fc1_x", "mlp.w2"),
            ):
                name = name.replace(ours, theirs)
            if "blocks.0.mlp.fc1_g.weight" in weights:
                name = name.replace("mlp.fc2", "mlp.w3")
            renamed[name] = value
    return renamed


def same(left: ViTBackbone, right: ViTBackbone) -> bool:
    theirs = right.vit.state_dict()
    return all(torch.allclose(v, theirs[n], atol=1e-6) for n, v in left.vit.state_dict().items())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_meta_dinov2(registers: int, gated: bool, tmp_path: Path) -> None:
    trained = make("dinov2", num_registers=registers, gated_mlp=gated)
    torch.save(as_meta(trained), tmp_path / "meta.pth")
    fresh = DINOv2(
        arch={**V2, "num_registers": registers, "gated_mlp": gated},
        image_size=56,
        num_joint_blocks=1,
        pretrained=str(tmp_path / "meta.pth"),
    )
    assert not same(fresh, trained)
    fresh.init_weights()
    assert same(fresh, trained)


@pytest.mark.parametrize("gated", [False, True])
def test_meta_dinov3(gated: bool, tmp_path: Path) -> None:
    trained = make("dinov3", gated_mlp=gated)
    # Nested and wrapped, as training checkpoints are.
    content = {"teacher": {f"module.{n}": v for n, v in as_meta(trained).items()}, "step": 3}
    torch.save(content, tmp_path / "meta.pth")
    fresh = DINOv3(arch={**V3, "gated_mlp": gated}, image_size=64, num_joint_blocks=1)
    load_pretrained(fresh.vit, str(tmp_path / "meta.pth"))
    assert same(fresh, trained)


def test_other_patch_size_and_grid_are_resampled_as_timm_does(tmp_path: Path) -> None:
    trained = make("dinov2")
    torch.save(as_meta(trained), tmp_path / "meta.pth")
    fresh = DINOv2(arch=V2, patch_size=16, image_size=96, num_joint_blocks=1)
    load_pretrained(fresh.vit, str(tmp_path / "meta.pth"))
    kernel = timm.layers.resample_patch_embed(trained.vit.patch_embed.proj.weight, [16, 16])
    assert torch.allclose(fresh.vit.patch_embed.proj.weight, kernel, atol=1e-6)
    table = timm.layers.resample_abs_pos_embed(
        trained.vit.pos_embed, [6, 6], num_prefix_tokens=0, antialias=True
    )
    assert torch.allclose(fresh.vit.pos_embed, table, atol=1e-6)


def test_timm_weights_without_biases_load_with_zeros(tmp_path: Path) -> None:
    trained = make("dinov3")
    weights = {n: v for n, v in trained.vit.state_dict().items() if not n.endswith("_bias")}
    save_file(weights, tmp_path / "timm.safetensors")
    fresh = make("dinov3")
    load_pretrained(fresh.vit, str(tmp_path / "timm.safetensors"))
    assert fresh.vit.blocks[1].attn.q_bias.abs().max() == 0
    assert torch.equal(fresh.vit.blocks[1].attn.qkv.weight, weights["blocks.1.attn.qkv.weight"])


def test_timm_classifier_is_left_out_and_its_norm_kept(tmp_path: Path) -> None:
    name = "eva02_tiny_patch14_224"
    model = timm.create_model(name, num_classes=5)
    assert "fc_norm.weight" in model.state_dict()
    torch.nn.init.normal_(model.fc_norm.weight)
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    backbone = TimmViT(name, image_size=224, pretrained=str(tmp_path / "timm.safetensors"))
    backbone.init_weights()
    assert torch.equal(backbone.vit.norm.weight, model.fc_norm.weight)
    images = torch.randn(1, 3, 224, 224)
    state = backbone.eval()(images)
    tokens = state.tokens
    for block in state.blocks:
        tokens = block(tokens, rope=state.rope)
    expected = model.eval().forward_features(images)  # before fc_norm
    assert torch.allclose(tokens, expected, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "vit.", "backbone.vit."])
def test_our_own_weights(prefix: str, tmp_path: Path) -> None:
    trained = make("dinov2")
    weights = {f"{prefix}{n}": v for n, v in trained.vit.state_dict().items()}
    if prefix == "backbone.vit.":
        weights["decode_head.query.weight"] = torch.zeros(3, 32)
    save_file(weights, tmp_path / "ours.safetensors")
    fresh = DINOv2(arch=V2, image_size=56, num_joint_blocks=1)
    load_pretrained(fresh.vit, str(tmp_path / "ours.safetensors"))
    assert same(fresh, trained)


def test_table_of_a_rectangle_is_kept_as_it_is(tmp_path: Path) -> None:
    trained = DINOv2(arch=V2, image_size=(28, 112), num_joint_blocks=1)
    save_file(trained.vit.state_dict(), tmp_path / "ours.safetensors")
    fresh = DINOv2(arch=V2, image_size=(28, 112), num_joint_blocks=1)
    load_pretrained(fresh.vit, str(tmp_path / "ours.safetensors"))
    assert same(fresh, trained)
    tall = DINOv2(arch=V2, image_size=(56, 84), num_joint_blocks=1)
    with pytest.raises(ValueError, match="image_size"):
        wide = DINOv2(arch=V2, image_size=(28, 42), num_joint_blocks=1)
        save_file(wide.vit.state_dict(), tmp_path / "wide.safetensors")
        load_pretrained(tall.vit, str(tmp_path / "wide.safetensors"))


def test_every_missing_and_unexpected_key_is_named(tmp_path: Path) -> None:
    backbone = make("dinov3")
    weights = backbone.vit.state_dict()
    del weights["blocks.1.norm2.bias"]
    weights["blocks.1.surprise"] = torch.zeros(1)
    weights["norm.weight"] = torch.zeros(7)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError) as caught:
        load_pretrained(backbone.vit, str(tmp_path / "w.safetensors"))
    message = str(caught.value)
    assert "missing: blocks.1.norm2.bias\n" in message
    assert "unexpected: blocks.1.surprise\n" in message
    assert "norm.weight (7,), expected (32,)" in message
    assert "w.safetensors" in message


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"embed_dims": 64}, "embed dim 64, expected 32"),
        ({"depth": 3}, "depth 3, expected 2"),
        ({"num_registers": 0}, "register tokens 0, expected 4"),
        ({"gated_mlp": True}, "MLP gated, expected plain"),
    ],
)
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_another_architecture_is_told_by_its_sizes(
    family: str, other: dict[str, Any], told: str, tmp_path: Path
) -> None:
    found = make(family, **other)
    weights = as_meta(found) if other.get("num_registers") != 0 else found.vit.state_dict()
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=told):
        load_pretrained(make(family).vit, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_images_of_other_channels_begin_with_the_colours_known(family: str, tmp_path: Path) -> None:
    trained = make(family).eval()
    torch.save(as_meta(trained), tmp_path / "w.pth")
    kind, arch = {"dinov2": (DINOv2, V2), "dinov3": (DINOv3, V3)}[family]
    size = {"dinov2": 56, "dinov3": 64}[family]
    images = torch.randn(1, 4, size, size)
    for channels, ours, theirs in (
        (4, images, images[:, :3]),  # the fourth has no influence at first
        (1, images[:, :1], images[:, :1].expand(-1, 3, -1, -1)),
    ):
        backbone = kind(
            arch=arch,
            image_size=size,
            num_joint_blocks=1,
            in_channels=channels,
            pretrained=str(tmp_path / "w.pth"),
        ).eval()
        backbone.init_weights()
        with torch.no_grad():
            found, expected = backbone(ours).tokens, trained(theirs).tokens
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_family_is_told(tmp_path: Path) -> None:
    torch.save(as_meta(make("dinov2")), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"learned \(DINOv2\), expected rotary \(DINOv3\)"):
        load_pretrained(make("dinov3").vit, str(tmp_path / "w.pth"))


def test_unknown_layout_shows_names(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"known layouts.*conv1\.weight"):
        load_pretrained(make("dinov3").vit, str(tmp_path / "resnet.safetensors"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_has_the_released_weights_that_are_named(name: str) -> None:
    hub_name = ARCHITECTURES[name].hub_name
    if name == "dinov3/vitl16plus":
        assert hub_name is None
        with pytest.raises(ValueError, match="no weights of this architecture"):
            locate("timm", hub_name=None)
        return
    assert hub_name is not None
    assert registered_source(hub_name)[0] == f"timm/{hub_name}"


def test_unknown_timm_weights_are_told() -> None:
    with pytest.raises(ValueError, match="lvd1689m"):
        locate("timm/vit_small_patch16_dinov3.nonsense")
