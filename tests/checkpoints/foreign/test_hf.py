"""transformers' files, loaded by us and run, against transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmseg_eomt.checkpoints.backbone_weights import load_pretrained
from mmseg_eomt.checkpoints.foreign.hf import convert_hf, is_hf_layout
from mmseg_eomt.models.backbones import DINOv2, DINOv3
from mmseg_eomt.models.vit import ViTBackbone

transformers = pytest.importorskip("transformers")

SIZES = {"embed_dims": 32, "depth": 3, "num_heads": 2}
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "layerscale_value": 0.5,
    "attn_implementation": "eager",
}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere: initial zeros and ones would hide a wrong name."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def run_all(backbone: ViTBackbone, images: Tensor) -> Tensor:
    """All tokens after all blocks and the final norm, ``[B, P + N, C]``."""
    state = backbone.eval()(images)
    tokens = state.tokens
    for block in state.blocks:
        tokens = block(tokens, **({} if state.rope is None else {"rope": state.rope}))
    return state.norm(tokens)


def dinov2(registers: int, gated: bool) -> tuple[nn.Module, ViTBackbone]:
    options: dict[str, Any] = {"patch_size": 14, "image_size": 56, "use_swiglu_ffn": gated}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(
            **COMMON, **options, num_register_tokens=registers
        )
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**COMMON, **options))
    # transformers: two thirds of 4 * 32, up to a multiple of 8.
    arch = {**SIZES, "patch_size": 14, "num_registers": registers, "gated_mlp": gated}
    arch["mlp_ratio"] = 88 / 32 if gated else 4
    return randomized(model), DINOv2(arch=arch, image_size=56, num_joint_blocks=2)


def dinov3(gated: bool) -> tuple[nn.Module, ViTBackbone]:
    config = transformers.DINOv3ViTConfig(
        **COMMON,
        patch_size=16,
        image_size=64,
        intermediate_size=48,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        pos_embed_rescale=None,
    )
    arch = {**SIZES, "patch_size": 16, "mlp_ratio": 1.5, "gated_mlp": gated}
    model = randomized(transformers.DINOv3ViTModel(config))
    return model, DINOv3(arch=arch, image_size=64, num_joint_blocks=2)


PAIRS = {
    "dinov2": lambda: dinov2(0, False),
    "dinov2-registers": lambda: dinov2(4, False),
    "dinov2-gated": lambda: dinov2(4, True),
    "dinov3": lambda: dinov3(False),
    "dinov3-gated": lambda: dinov3(True),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("layout", ["memory", "folder"])
def test_same_tokens_as_transformers(name: str, layout: str, tmp_path: Path) -> None:
    """``memory`` has the names of transformers 5.x, a saved folder those of 4.x."""
    model, backbone = PAIRS[name]()
    if layout == "memory":
        source = tmp_path / "weights.pth"
        torch.save(model.state_dict(), source)
    else:
        source = tmp_path
        model.save_pretrained(source)
    load_pretrained(backbone.vit, str(source))
    size = (2, 3, 4 * backbone.patch_size, 4 * backbone.patch_size)
    images = torch.randn(size)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        found = run_all(backbone, images)
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-5), (found - expected).abs().max()


def test_rectangle_has_the_same_rotary_positions_as_transformers(tmp_path: Path) -> None:
    model, backbone = dinov3(False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    load_pretrained(backbone.vit, str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 48, 112)
    with torch.no_grad():
        difference = run_all(backbone, images) - model(images).last_hidden_state
    assert difference.abs().max() < 2e-5


def test_names_of_both_versions_differ_and_give_the_same(tmp_path: Path) -> None:
    model, _ = dinov2(4, True)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    memory = model.state_dict()
    assert set(saved) != set(memory)
    old, new = convert_hf(saved), convert_hf(memory)
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_prefix_of_a_larger_model_is_taken_off() -> None:
    model, _ = dinov2(4, False)
    weights = {f"dinov2.{name}": value for name, value in model.state_dict().items()}
    assert is_hf_layout(weights)
    assert set(convert_hf(weights)) == set(convert_hf(model.state_dict()))


def test_sharded_folder_is_read_whole(tmp_path: Path) -> None:
    model, backbone = dinov3(True)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    load_pretrained(backbone.vit, str(tmp_path))
    weight = backbone.vit.blocks[2].mlp.fc1_g.weight
    assert torch.equal(weight, model.state_dict()["model.layer.2.mlp.gate_proj.weight"])
    lost = sorted(tmp_path.glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load_pretrained(backbone.vit, str(tmp_path))
