"""Backbones of other programs as files for `backbone_weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import mmseg_eomt
from mmseg_eomt.checkpoints.backbone_weights import load_pretrained
from mmseg_eomt.models.backbones import DINOv2, DINOv3
from mmseg_eomt.models.vit import ViTBackbone
from tests.checkpoints.foreign.test_hf import PAIRS, run_all
from tests.checkpoints.test_backbone_weights import as_meta, make

META = [
    ("dinov2", {}),
    ("dinov2", {"gated_mlp": True}),
    ("dinov2", {"num_registers": 0}),
    ("dinov3", {}),
    ("dinov3", {"gated_mlp": True}),
]
# Widths of which the heads are known: 64 channels each.
WIDE = {"embed_dims": 128, "num_heads": 2}


def fresh(family: str, **arch: Any) -> ViTBackbone:
    """At another patch size and grid than the file's, so that both are resampled."""
    kind = DINOv2 if family == "dinov2" else DINOv3
    sizes = {"embed_dims": 128, "depth": 2, "num_heads": 2, "patch_size": 16, **arch}
    return kind(arch=sizes, image_size=96, num_joint_blocks=1)


def tensors(backbone: ViTBackbone, source: Path) -> dict[str, Tensor]:
    load_pretrained(backbone.vit, str(source))
    return backbone.vit.state_dict()


@pytest.mark.parametrize(("family", "arch"), META)
def test_meta_file_and_its_conversion_load_alike(
    family: str, arch: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "meta.pth"
    torch.save({"teacher": as_meta(make(family, **WIDE, **arch))}, source)
    result = mmseg_eomt.convert_checkpoint(source, tmp_path / "out.safetensors")
    assert result.header is None
    assert result.layout.startswith(f"backbone of Meta, {family}/")
    expected = tensors(fresh(family, **arch), source)
    found = tensors(fresh(family, **arch), result.out)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    with safe_open(result.out, "pt") as file:
        assert all(name.startswith("backbone.vit.") for name in file.keys())  # noqa: SIM118
    with pytest.raises(ValueError, match="backbone_weights"):
        mmseg_eomt.load_model(result.out)


@pytest.mark.parametrize("name", PAIRS)
def test_transformers_backbone_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    model, backbone = PAIRS[name]()
    model.save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    result = mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert result.layout.startswith("backbone of transformers")
    load_pretrained(backbone.vit, str(result.out))
    images = torch.randn(2, 3, 4 * backbone.patch_size, 4 * backbone.patch_size)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        found = run_all(backbone, images)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-5)


TIMM = {
    "vit_small_patch14_dinov2": "dinov2/vits14-noreg",
    "vit_small_patch14_reg4_dinov2": "dinov2/vits14",
    "vit_small_patch16_dinov3": "dinov3/vits16",
    "vit_small_patch16_dinov3_qkvb": "dinov3/vits16",
    "vit_small_plus_patch16_dinov3": "dinov3/vits16plus",
    "vit_base_patch14_reg4_dinov2": "dinov2/vitb14",
    "vit_base_patch16_dinov3": "dinov3/vitb16",
}


def same_features(name: str, tmp_path: Path, **sizes: Any) -> str:
    """Converts a random timm model, loads it and compares features; returns the layout found."""
    model = timm.create_model(name, num_classes=5, img_size=112, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (tmp_path / "timm").mkdir()
    save_file(model.state_dict(), tmp_path / "timm" / "model.safetensors")
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "whatever"}')
    result = mmseg_eomt.convert_checkpoint(tmp_path / "timm", tmp_path / "out")
    family = "dinov2" if "dinov2" in name else "dinov3"
    kind = DINOv2 if family == "dinov2" else DINOv3
    arch: Any = TIMM[name].split("/")[1]
    if sizes:
        registers = 0 if "noreg" in arch else 4
        arch = {
            "embed_dims": 128, "depth": 2, "num_heads": 2, "num_registers": registers,
            "patch_size": 14 if family == "dinov2" else 16, "gated_mlp": "plus" in arch,
        }  # fmt: skip
    backbone = kind(arch=arch, image_size=112)
    load_pretrained(backbone.vit, str(result.out))
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = model.eval().forward_features(images)
        found = run_all(backbone, images)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))
    return result.layout


@pytest.mark.parametrize("name", [name for name in TIMM if "small" in name])
def test_timm_backbone_gives_the_same_features(name: str, tmp_path: Path) -> None:
    layout = same_features(name, tmp_path, embed_dim=128, depth=2, num_heads=2)
    assert layout == f"backbone of timm, {TIMM[name].split('/')[0]}/unknown sizes"


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_real_timm_backbones(name: str, tmp_path: Path) -> None:
    assert same_features(name, tmp_path) == f"backbone of timm, {TIMM[name]}"


def test_no_dino_is_told(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "in21k.safetensors")
    with pytest.raises(ValueError, match=r"missing.*ls1\.gamma"):
        mmseg_eomt.convert_checkpoint(tmp_path / "in21k.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_backbone_cannot_become_a_model_of_transformers(tmp_path: Path) -> None:
    torch.save(as_meta(make("dinov3", **WIDE)), tmp_path / "meta.pth")
    with pytest.raises(ValueError, match="backbone alone"):
        mmseg_eomt.convert_checkpoint(tmp_path / "meta.pth", tmp_path / "out", to="hf")
    assert [p.name for p in tmp_path.iterdir()] == ["meta.pth"]
