"""Every EoMT layout against the program it is from: same logits, same label map, same settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mmseg_eomt
from mmseg_eomt.checkpoints.convert import Conversion
from tests.checkpoints.layouts import (
    CLASSES,
    MEAN,
    STD,
    hf_backbone,
    lightly,
    meta_style,
    official,
    official_dinov3_encoder,
    oracle_labels,
    oracle_of,
    picture,
    save_hf_4x,
)

Writer = Callable[[nn.Module, Path], dict[str, Any]]


def official_bin(oracle: nn.Module, path: Path) -> dict[str, Any]:
    torch.save(official(oracle), path)
    return {}


def official_ckpt(oracle: nn.Module, path: Path) -> dict[str, Any]:
    weights = {n.replace("network.", "network._orig_mod."): v for n, v in official(oracle).items()}
    torch.save({"epoch": 3, "state_dict": weights, "optimizer_states": [{"lr": 1.0}]}, path)
    return {}


def official_delta(oracle: nn.Module, path: Path) -> dict[str, Any]:
    """Differences to a backbone that lies beside, in Meta's layout, with no biases set."""
    base = oracle_of(
        "dinov3",
        gated=oracle.config.use_gated_mlp,
        **{k: getattr(oracle.config, k) for k in ("hidden_size", "num_attention_heads",
           "num_hidden_layers", "intermediate_size", "image_size", "num_queries", "num_labels")},
    )  # fmt: skip
    with torch.no_grad():
        for name, value in base.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")):
                value.zero_()
            # The tuned model is near its base.
            else:
                value.copy_(oracle.get_parameter(name) + 0.02 * torch.randn_like(value))
    torch.save(meta_style(base), path.with_name("base.pth"))
    hf_backbone(base).save_pretrained(path.with_name("hf base"))
    weights = official(oracle)
    for name, value in official_dinov3_encoder(base).items():
        weights[f"network.encoder.backbone.{name}"] -= value
    for name in ("pixel_mean", "pixel_std"):
        weights[f"network.encoder.{name}"].zero_()
    weights["network.attn_mask_probs"].fill_(-1.0)
    torch.save(weights, path)
    return {"base": path.with_name("base.pth"), "image_size": oracle.config.image_size}


def hf_5x(oracle: nn.Module, path: Path) -> dict[str, Any]:
    oracle.save_pretrained(path)
    return {}


def hf_4x(oracle: nn.Module, path: Path) -> dict[str, Any]:
    save_hf_4x(oracle, path)
    return {}


def hf_sharded_bin(oracle: nn.Module, path: Path) -> dict[str, Any]:
    oracle.save_pretrained(path, max_shard_size="200KB")
    assert (path / "model.safetensors.index.json").is_file()
    return {}


def lightly_exported(oracle: nn.Module, path: Path) -> dict[str, Any]:
    torch.save(lightly(oracle), path)
    return {}


def lightly_last(oracle: nn.Module, path: Path) -> dict[str, Any]:
    """With a data loader pickled beside the weights, of classes that nobody here may import."""
    import functools

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(4)),
        shuffle=True,
        batch_size=2,
        collate_fn=functools.partial(torch.utils.data.default_collate),
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    extra = {"train_dataloader": loader, "step": 9, "optimizer": optimizer.state_dict()}
    torch.save({**lightly(oracle), **extra, "scheduler": {"last": Path("x")}}, path)
    with pytest.raises(Exception, match="Weights only"):
        torch.load(path, weights_only=True)
    return {}


LAYOUTS: dict[str, tuple[str, Writer, dict[str, Any]]] = {
    "official .bin, DINOv2": ("dinov2", official_bin, {}),
    "official .bin, DINOv2, gated": ("dinov2", official_bin, {"gated": True}),
    "official .ckpt, DINOv2": ("dinov2", official_ckpt, {}),
    "official .ckpt, DINOv3": ("dinov3", official_ckpt, {}),
    "official delta, DINOv3": ("dinov3", official_delta, {}),
    "official delta, DINOv3, gated": ("dinov3", official_delta, {"gated": True}),
    "transformers 5.x, DINOv2": ("dinov2", hf_5x, {}),
    "transformers 5.x, DINOv2, gated": ("dinov2", hf_5x, {"gated": True}),
    "transformers 5.x, DINOv3": ("dinov3", hf_5x, {}),
    "transformers 5.x, DINOv3, gated": ("dinov3", hf_5x, {"gated": True, "silu_heads": True}),
    "transformers 4.x, DINOv2": ("dinov2", hf_4x, {}),
    "transformers 4.x, DINOv2, gated": ("dinov2", hf_4x, {"gated": True}),
    "transformers, sharded": ("dinov3", hf_sharded_bin, {}),
    "transformers, no registers": ("dinov2", hf_5x, {"num_register_tokens": 0}),
    "transformers, patch 8, one upscale block": (
        "dinov2",
        hf_5x,
        {"patch_size": 8, "num_upscale_blocks": 1},
    ),
    "LightlyTrain exported, DINOv2": ("dinov2", lightly_exported, {}),
    "LightlyTrain exported, DINOv2, gated": ("dinov2", lightly_exported, {"gated": True}),
    "LightlyTrain exported, DINOv3": ("dinov3", lightly_exported, {}),
    "LightlyTrain exported, DINOv3, gated": ("dinov3", lightly_exported, {"gated": True}),
    "LightlyTrain last.ckpt, DINOv3": ("dinov3", lightly_last, {}),
}


def converted(
    name: str, tmp_path: Path, **sizes: Any
) -> tuple[nn.Module, Conversion, mmseg_eomt.SegmentationModel]:
    family, write, options = LAYOUTS[name]
    oracle = oracle_of(family, **{**options, **sizes})
    source = tmp_path / "misleading name.jpg"
    settings = write(oracle, source)
    if "official" in name and family == "dinov3":
        settings.setdefault("image_size", oracle.config.image_size)
    result = mmseg_eomt.convert_checkpoint(source, tmp_path / "out.safetensors", **settings)
    return oracle, result, mmseg_eomt.load_model(result.out, device="cpu")


def check_same(oracle: nn.Module, model: mmseg_eomt.SegmentationModel, *, lightly: bool) -> None:
    side = oracle.config.image_size
    segmentor: Any = model.segmentor
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = oracle(pixel_values=images)
        masks, classes = segmentor.decode_head(segmentor.extract_feat(images))
    for found, wanted in (
        (masks, expected.masks_queries_logits),
        (classes, expected.class_queries_logits),
    ):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-5 * scale)
    image = picture(side)
    own = {"mean": MEAN, "std": STD} if lightly else {}
    wanted_labels = oracle_labels(oracle, image, **own)
    wanted_ids = torch.tensor(model.header.class_ids)[wanted_labels.long()]
    same = (model.predict(image) == wanted_ids).float().mean()
    assert same > 0.9995, f"{1 - same:.2%} of the pixels differ"


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_logits_and_label_map_as_at_home(name: str, tmp_path: Path) -> None:
    oracle, result, model = converted(name, tmp_path)
    assert name.split()[0].rstrip(",") in result.layout
    check_same(oracle, model, lightly="LightlyTrain" in name)
    header = model.header
    config = oracle.config
    assert header.num_queries == config.num_queries
    assert header.num_joint_blocks == config.num_blocks
    assert header.num_classes == config.num_labels
    assert header.patch_size == config.patch_size
    assert header.test_size == (config.image_size, config.image_size)
    if "LightlyTrain" in name:
        assert model.classes == CLASSES
        assert header.mean == pytest.approx([255 * v for v in MEAN])
    elif "transformers" in name:
        assert list(header.classes) == [config.id2label[i] for i in range(config.num_labels)]
    else:
        assert header.classes == tuple(f"class {i}" for i in range(config.num_labels))
        assert any("--classes" in note for note in result.notes)
        assert header.mean == pytest.approx((123.675, 116.28, 103.53))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "num_blocks": 3}
BASE = {**SMALL, "hidden_size": 768, "num_attention_heads": 12}
REAL = {
    "official .bin, DINOv2": (SMALL, BASE),
    "official delta, DINOv3": (SMALL, BASE),
    "official delta, DINOv3, gated": (SMALL,),
    "transformers 5.x, DINOv2": (SMALL, BASE),
    "transformers 5.x, DINOv3": (SMALL, BASE),
    "LightlyTrain exported, DINOv2": (SMALL, BASE),
    "LightlyTrain exported, DINOv3": (SMALL, BASE),
    "LightlyTrain exported, DINOv3, gated": (SMALL,),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [(n, s) for n, all_ in REAL.items() for s in all_])
def test_real_sizes(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    more = {"num_labels": 150, "num_queries": 100, "image_size": 128}
    oracle, _, model = converted(name, tmp_path, **sizes, **more)
    letter = "s" if sizes is SMALL else "b"
    patch = "14" if "DINOv2" in name else "16"
    plus = "plus" if "gated" in name else ""
    assert model.header.architecture == f"vit{letter}{patch}{plus}"
    check_same(oracle, model, lightly="LightlyTrain" in name)


def test_known_classes_bring_names_and_colours(tmp_path: Path) -> None:
    oracle = oracle_of("dinov2", num_labels=19)
    torch.save(official(oracle), tmp_path / "a.bin")
    out = tmp_path / "out.safetensors"
    mmseg_eomt.convert_checkpoint(tmp_path / "a.bin", out, classes="cityscapes")
    header = mmseg_eomt.load_model(out).header
    assert header.classes[:2] == ("road", "sidewalk")
    assert header.palette[0] == (128, 64, 128)
    with pytest.raises(ValueError, match=r"for 19 classes, but ade20k has 150"):
        mmseg_eomt.convert_checkpoint(
            tmp_path / "a.bin", tmp_path / "b.safetensors", classes="ade20k"
        )
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    "text",
    ["a\nb\nc\nd\ne\nf\n", '["a","b","c","d","e","f"]', "classes: {0: a, 1: b, 2: c, 3: d, 4: e, "
     "9: {name: f, labels: [1]}}"],
)  # fmt: skip
def test_names_from_a_file(text: str, tmp_path: Path) -> None:
    torch.save(official(oracle_of("dinov2")), tmp_path / "a.bin")
    (tmp_path / "names").write_text(text)
    result = mmseg_eomt.convert_checkpoint(
        tmp_path / "a.bin", tmp_path / "out", classes=str(tmp_path / "names")
    )
    assert result.header is not None
    assert result.header.classes == ("a", "b", "c", "d", "e", "f")
    assert result.header.class_ids[-1] == (9 if "9" in text else 5)


def test_delta_without_base_and_base_without_delta_are_told(tmp_path: Path) -> None:
    oracle = oracle_of("dinov3")
    settings = official_delta(oracle, tmp_path / "delta.bin")
    base = settings["base"]
    with pytest.raises(ValueError, match=r"DELTA weights.*--base"):
        mmseg_eomt.convert_checkpoint(tmp_path / "delta.bin", tmp_path / "out")
    torch.save(official(oracle), tmp_path / "whole.bin")
    with pytest.raises(ValueError, match="leave out --base"):
        mmseg_eomt.convert_checkpoint(tmp_path / "whole.bin", tmp_path / "out", base=base)
    oracle.save_pretrained(tmp_path / "hf")
    with pytest.raises(ValueError, match="leave out --base"):
        mmseg_eomt.convert_checkpoint(tmp_path / "hf", tmp_path / "out", base=base)
    other = meta_style(oracle_of("dinov3", num_hidden_layers=4))
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit.*blocks\.3.*missing in the delta"):
        mmseg_eomt.convert_checkpoint(
            tmp_path / "delta.bin", tmp_path / "out", base=tmp_path / "other.pth"
        )
    assert not (tmp_path / "out").exists()


def test_base_in_any_layout_gives_the_same(tmp_path: Path) -> None:
    oracle = oracle_of("dinov3")
    settings = official_delta(oracle, tmp_path / "delta.bin")
    meta = mmseg_eomt.convert_checkpoint(tmp_path / "delta.bin", tmp_path / "a", **settings)
    ours = mmseg_eomt.convert_checkpoint(settings["base"], tmp_path / "base.safetensors")
    first = mmseg_eomt.load_model(meta.out, device="cpu").segmentor.state_dict()
    for base in (ours.out, tmp_path / "hf base"):
        settings["base"] = base
        again = mmseg_eomt.convert_checkpoint(
            tmp_path / "delta.bin", tmp_path / "b", force=True, **settings
        )
        second = mmseg_eomt.load_model(again.out, device="cpu").segmentor.state_dict()
        assert all(torch.equal(second[name], value) for name, value in first.items())


def test_bf16_weights_become_float32(tmp_path: Path) -> None:
    weights = {name: value.bfloat16() for name, value in official(oracle_of("dinov2")).items()}
    save_file(weights, tmp_path / "half.safetensors")
    mmseg_eomt.convert_checkpoint(tmp_path / "half.safetensors", tmp_path / "out")
    state = mmseg_eomt.load_model(tmp_path / "out", device="cpu").segmentor.state_dict()
    assert torch.equal(state["decode_head.query.weight"], weights["network.q.weight"].float())
    assert all(v.dtype == torch.float32 for n, v in state.items() if "vit" in n)


def test_lightly_periods_rounded_to_bfloat16_are_said_and_others_refused(tmp_path: Path) -> None:
    content = lightly(oracle_of("dinov3"))
    periods = content["train_model"]["model.backbone.rope_embed.periods"]
    exact = periods.clone()
    periods.copy_(exact.bfloat16().float())
    torch.save(content, tmp_path / "a.pt")
    result = mmseg_eomt.convert_checkpoint(tmp_path / "a.pt", tmp_path / "out")
    assert any("bfloat16" in note for note in result.notes)
    periods.copy_(2 * exact)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"rope_embed\.periods are \[2\.0"):
        mmseg_eomt.convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", force=True)


def test_lightly_size_that_is_no_multiple_of_the_patch_is_said(tmp_path: Path) -> None:
    content = lightly(oracle_of("dinov2"), image_size=(70, 60))
    torch.save(content, tmp_path / "a.pt")
    result = mmseg_eomt.convert_checkpoint(tmp_path / "a.pt", tmp_path / "out")
    assert result.header is not None
    assert result.header.test_size == (64, 64)
    assert result.header.image_size == (64, 64)
    assert any("image size 60 is no multiple of the patch size 16" in n for n in result.notes)
