"""Our models in transformers, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

import mmseg_eomt
from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.checkpoints.weights_file import read_weights, save_weights
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from tests.apis.tiny import tiny_header
from tests.checkpoints.layouts import oracle_of, picture

V2 = {"embed_dims": 32, "depth": 3, "num_heads": 2, "patch_size": 14}
HEADERS: dict[str, dict[str, Any]] = {
    "dinov3": {},
    "dinov3, other patch": {"patch_size": 16, "num_upscale_blocks": 2},
    "dinov3, gated": {
        "architecture": {**tiny_header().architecture, "gated_mlp": True, "mlp_ratio": 1.5},
        "activation": "silu",
    },
    "dinov2": {"family": "dinov2", "architecture": V2, "patch_size": 16},
    "dinov2, gated": {
        "family": "dinov2",
        "architecture": {**V2, "gated_mlp": True, "mlp_ratio": 2.75},
        "patch_size": 8,
    },
    "dinov2, 3 registers": {"family": "dinov2", "architecture": {**V2, "num_registers": 3}},
}


def random_model(path: Path, **changes: Any) -> ModelHeader:
    header = tiny_header(test_size=(32, 32), **changes)
    segmentor = build_segmentor(header)
    with torch.no_grad():
        for parameter in segmentor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_weights(path, segmentor, header)
    return header


@pytest.mark.parametrize("name", HEADERS)
def test_from_pretrained_gives_the_same_and_comes_back_bit_equal(name: str, tmp_path: Path) -> None:
    header = random_model(tmp_path / "a.safetensors", **HEADERS[name])
    folder = tmp_path / "hf"
    mmseg_eomt.convert_checkpoint(tmp_path / "a.safetensors", folder, to="hf")
    theirs, loading = AutoModelForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = mmseg_eomt.load_model(tmp_path / "a.safetensors", device="cpu")
    segmentor: Any = ours.segmentor
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=images)
        masks, classes = segmentor.decode_head(segmentor.extract_feat(images))
    torch.testing.assert_close(expected.masks_queries_logits, masks, rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(expected.class_queries_logits, classes, rtol=2e-5, atol=1e-4)
    assert theirs.config.id2label == dict(enumerate(header.classes))

    processor = AutoImageProcessor.from_pretrained(folder)
    image = picture(32)
    with torch.no_grad():
        outputs = theirs(**processor(images=image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
    ids = torch.tensor(header.class_ids)[labels[0].long()]
    assert (ours.predict(image) == ids).float().mean() > 0.999

    mmseg_eomt.convert_checkpoint(folder, tmp_path / "b.safetensors")
    back, state = read_weights(tmp_path / "b.safetensors")
    assert back == header.replace(versions=back.versions)
    original = read_weights(tmp_path / "a.safetensors")[1]
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], value) for key, value in original.items())


@pytest.mark.parametrize(("family", "gated"), [("dinov2", False), ("dinov2", True), ("dinov3", 0)])
def test_transformers_to_ours_and_back_is_bit_equal(
    family: str, gated: bool, tmp_path: Path
) -> None:
    oracle = oracle_of(family, gated=bool(gated))
    oracle.save_pretrained(tmp_path / "hf")
    mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "ours")
    mmseg_eomt.convert_checkpoint(tmp_path / "ours", tmp_path / "again", to="hf")
    again = type(oracle).from_pretrained(tmp_path / "again")
    for name, value in oracle.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_without_registers_the_function_is_the_same(tmp_path: Path) -> None:
    """transformers has no position of the cls token: it is added to the token."""
    changes = {"family": "dinov2", "architecture": {**V2, "num_registers": 0}}
    random_model(tmp_path / "a", **changes)
    mmseg_eomt.convert_checkpoint(tmp_path / "a", tmp_path / "hf", to="hf")
    mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "b")
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    one, two = (mmseg_eomt.load_model(tmp_path / n, device="cpu") for n in "ab")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, second = (m.segmentor.decode_head(m.segmentor.extract_feat(images))[0]
                         for m in (one, two))  # fmt: skip
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert (one.predict(image) == two.predict(image)).float().mean() > 0.999


def test_table_of_another_size_is_resampled_as_at_run_time(tmp_path: Path) -> None:
    """Trained at 56, tested at 32: transformers takes images of one size only."""
    header = random_model(
        tmp_path / "a", family="dinov2", architecture=V2, patch_size=8, image_size=(56, 56)
    )
    assert header.test_size == (32, 32)
    mmseg_eomt.convert_checkpoint(tmp_path / "a", tmp_path / "hf", to="hf")
    theirs = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "hf").eval()
    ours: Any = mmseg_eomt.load_model(tmp_path / "a", device="cpu").segmentor
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=images).masks_queries_logits
        found = ours.decode_head(ours.extract_feat(images))[0]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": {**tiny_header().architecture, "gated_mlp": True}}, "one activation"),
        ({"activation": "silu"}, "GELU in the MLPs and 'silu' in the heads"),
        (
            {"family": "dinov2", "architecture": {**V2, "mlp_ratio": 1.5}},
            "whole multiple of the 32 channels",
        ),
        ({"family": "timm", "architecture": "vit_tiny_patch16_224"}, "DINOv2 or DINOv3 only"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_express_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    random_model(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=told):
        mmseg_eomt.convert_checkpoint(tmp_path / "a", tmp_path / "hf", to="hf")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("dinov3", {"use_gated_mlp": True}, "hidden_act is 'gelu', such a model has silu"),
        ("dinov2", {"hidden_act": "silu"}, "hidden_act is 'silu', such a model has gelu"),
        ("dinov3", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ("dinov3", {"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 10000.0"),
        ("dinov2", {"model_type": "mask2former"}, "model_type in config.json is 'mask2former'"),
        ("dinov2", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("dinov2", {"num_attention_heads": 3}, "multiple of 3"),
        ("dinov2", {"num_blocks": 99}, "num_joint_blocks=99"),
        ("dinov2", {"num_labels": 5, "id2label": {"0": "a"}}, "6 classes, but id2label"),
    ],
)  # fmt: skip
def test_configuration_of_another_model_is_refused(
    family: str, change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    oracle_of(family).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=told):
        mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_folder_changed_since_is_believed_rather_than_our_old_header(tmp_path: Path) -> None:
    random_model(tmp_path / "a")
    mmseg_eomt.convert_checkpoint(tmp_path / "a", tmp_path / "hf", to="hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"]["0"] = "another"
    path.write_text(json.dumps(config))
    result = mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "b")
    assert result.header is not None
    assert result.header.classes[0] == "another"
    assert result.header.class_ids == (0, 1, 2)


def test_training_checkpoint_becomes_lean_weights(tmp_path: Path) -> None:
    header = tiny_header()
    state = build_segmentor(header).state_dict()
    optimizer = {"exp_avg": [torch.zeros_like(v) for v in state.values()]}
    content = {"state_dict": state, HEADER_KEY: header.to_json(), "optimizer": optimizer}
    torch.save(content, tmp_path / "iter_1.pth")
    result = mmseg_eomt.convert_checkpoint(tmp_path / "iter_1.pth", tmp_path / "lean")
    assert result.header == header
    lean = read_weights(tmp_path / "lean")[1]
    assert all(torch.equal(lean[name], value) for name, value in state.items())
    size = sum(value.numel() * 4 for value in state.values())
    assert (tmp_path / "lean").stat().st_size < size + 40_000
