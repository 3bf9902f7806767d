from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmseg_eomt.engine.optimizer import LayerDecayOptimWrapperConstructor
from tests.engine.engine_toys import ToySegmentor


def build(model: nn.Module, *, lr: float = 1e-4, **paramwise: Any) -> list[dict[str, Any]]:
    constructor = LayerDecayOptimWrapperConstructor(
        {
            "type": "MixedPrecisionOptimWrapper",
            "optimizer": {"type": "AdamW", "lr": lr, "weight_decay": 0.05},
        },
        paramwise,
    )
    return constructor(model).optimizer.param_groups


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: group for group in groups for name in group["names"]}


def test_rates_of_vit_large_are_the_published_ones() -> None:
    groups = build(ToySegmentor(depth=24, num_joint_blocks=4))
    found = by_name(groups)
    assert found["backbone.blocks.23.weight"]["lr"] == pytest.approx(1e-4)
    # eomt.md section 2: block 0 and embeddings of ViT-L at 5.9e-7.
    for name in ("blocks.0.weight", "cls_token", "patch_embed.weight"):
        assert found[f"backbone.{name}"]["lr"] == pytest.approx(5.9e-7, rel=1e-2)
        assert found[f"backbone.{name}"]["lr"] == pytest.approx(1e-4 * 0.8**23)
    assert found["backbone.norm.weight"]["lr"] == pytest.approx(1e-4)
    assert found["backbone.norm.weight"]["role"] == "backbone"
    assert found["decode_head.query.weight"]["lr"] == pytest.approx(1e-4)
    assert found["decode_head.query.weight"]["role"] == "head"
    assert len(groups) == 25  # 24 rates of the backbone, one of the head


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    model = ToySegmentor()
    model.backbone.blocks[0].requires_grad_(False)
    groups = build(model, decay_exclude="usual")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(name for group in groups for name in group["names"]) == sorted(trained)
    named = dict(model.named_parameters())
    for group in groups:
        assert [named[name].data_ptr() for name in group["names"]] == [
            p.data_ptr() for p in group["params"]
        ]
    assert not any("blocks.0." in name for group in groups for name in group["names"])


def test_usual_exclusion_spares_norms_biases_and_tokens_only() -> None:
    found = by_name(build(ToySegmentor(), decay_exclude="usual"))
    free = {name for name, group in found.items() if group["weight_decay"] == 0.0}
    assert free == {
        "backbone.cls_token",
        "backbone.patch_embed.bias",
        *(f"backbone.blocks.{i}.bias" for i in range(3)),
        "backbone.norm.weight",
        "backbone.norm.bias",
        "decode_head.query.weight",
        "decode_head.class_head.bias",
    }
    everything = build(ToySegmentor(), decay_exclude="none")
    assert {group["weight_decay"] for group in everything} == {0.05}


def test_lr_mult_slows_blocks_before_the_joint_ones() -> None:
    found = by_name(build(ToySegmentor(), lr=2e-4, layer_decay=1.0, backbone_lr_mult=0.1))
    assert found["backbone.blocks.0.weight"]["lr"] == pytest.approx(2e-5)
    assert found["backbone.cls_token"]["lr"] == pytest.approx(2e-5)
    assert found["backbone.blocks.1.weight"]["lr"] == pytest.approx(2e-4)
    assert found["backbone.norm.bias"]["lr"] == pytest.approx(2e-4)
    assert found["backbone.blocks.0.weight"]["lr_scale"] == pytest.approx(0.1)


def test_a_parameter_of_no_block_is_named() -> None:
    model = ToySegmentor()
    model.backbone.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'backbone\.adapter\.weight' belongs to no block"):
        build(model)


def test_a_block_index_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToySegmentor()
    monkeypatch.setattr(model.backbone, "get_block_index", lambda name: 3)
    with pytest.raises(ValueError, match=r"is 3: it must lie in 0\.\.2"):
        build(model)


@pytest.mark.parametrize(
    ("paramwise", "words"),
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"decay_exclude": "norms"}, "decay_exclude is 'norms'"),
        ({"norm_decay_mult": 0.0}, "unknown keys"),
        ({"backbone_lr_mult": -1.0}, "must not be negative"),
    ],
)
def test_bad_options_are_refused(paramwise: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(ToySegmentor(), **paramwise)


def test_models_without_blocks_and_frozen_models_are_refused() -> None:
    with pytest.raises(ValueError, match="get_block_index"):
        build(nn.Linear(2, 2))
    frozen = ToySegmentor().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        build(frozen)


def test_shared_parameters_are_optimised_once() -> None:
    model = ToySegmentor()
    model.backbone.blocks[1].weight = model.backbone.blocks[2].weight
    groups = build(model)
    params = [p for group in groups for p in group["params"]]
    assert len(params) == len({id(p) for p in params})
    torch.optim.AdamW([{"params": g["params"]} for g in groups])
