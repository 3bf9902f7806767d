"""Every architecture is the one that was released: sizes, parameters, timm's names."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from mmseg_eomt.models.architectures import ARCHITECTURES, resolve_architecture
from mmseg_eomt.models.backbones import DINOv2, DINOv3
from mmseg_eomt.models.vit import ViTBackbone

# Millions of parameters and joint blocks. DINOv2 at patch 16 and 512 pixels. Sources: timm 1.0.31
# and Meta's model cards; vitl16plus: by hand from Meta's hub code (depth 24, ffn ratio 6).
RELEASED = {
    "dinov2/vits14": (22.0, 3),
    "dinov2/vitb14": (86.5, 3),
    "dinov2/vitl14": (304.2, 4),
    "dinov2/vitg14": (1136.2, 5),
    "dinov3/vits16": (21.6, 3),
    "dinov3/vits16plus": (28.7, 3),
    "dinov3/vitb16": (85.7, 3),
    "dinov3/vitl16": (303.1, 4),
    "dinov3/vitl16plus": (403.9, 4),
    "dinov3/vith16plus": (840.6, 5),
    "dinov3/vit7b16": (6716.4, 5),
}


def on_meta(name: str, **options: Any) -> ViTBackbone:
    family, arch = name.split("/")
    with torch.device("meta"):
        return (DINOv2 if family == "dinov2" else DINOv3)(arch, **options)


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def test_all_architectures_are_there() -> None:
    assert set(ARCHITECTURES) == set(RELEASED) | {
        f"{name}-noreg" for name in RELEASED if name.startswith("dinov2")
    }


@pytest.mark.parametrize("name", RELEASED)
def test_released_number_of_parameters(name: str) -> None:
    backbone = on_meta(name, patch_size=16, image_size=512)
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    assert (round(millions, 1), backbone.num_joint_blocks) == RELEASED[name]


@pytest.mark.parametrize(
    "name",
    [
        "dinov2/vits14",
        "dinov2/vitg14",
        "dinov2/vitb14-noreg",
        "dinov3/vits16plus",
        "dinov3/vitl16",
        "dinov3/vith16plus",
    ],
)
def test_same_parameters_as_timms_model(name: str) -> None:
    arch = ARCHITECTURES[name]
    assert arch.timm_name is not None
    with torch.device("meta"):
        model = timm.create_model(arch.timm_name, num_classes=0, img_size=28 * arch.patch_size)
        theirs = {n: s for n, s in shapes(model).items() if not n.startswith(("fc_norm", "head"))}
    assert shapes(on_meta(name, image_size=28 * arch.patch_size).vit) == theirs


def test_largest_differs_from_timms_by_its_biases_only() -> None:
    with torch.device("meta"):
        theirs = shapes(timm.create_model("vit_7b_patch16_dinov3", num_classes=0))
    ours = shapes(on_meta("dinov3/vit7b16").vit)
    extra = {name.rpartition(".")[2] for name in set(ours) - set(theirs)}
    assert extra == {"q_bias", "v_bias"} and not set(theirs) - set(ours)
    assert all(ours[name] == shape for name, shape in theirs.items())


def test_registers_false_is_the_noreg_architecture() -> None:
    plain = on_meta("dinov2/vits14", registers=False)
    assert shapes(plain) == shapes(on_meta("dinov2/vits14-noreg"))
    assert plain.num_prefix_tokens == 1
    assert plain.hub_name == "vit_small_patch14_dinov2.lvd142m"


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("vits15", "vits16, vits16plus"),
        ({"embed_dims": 64}, "depth"),
        ({"embed_dims": 64, "depth": 2, "num_heads": 4, "patch_size": 16, "dept": 3}, "dept"),
        ({"embed_dims": 66, "depth": 2, "num_heads": 3, "patch_size": 16}, "multiple of 12"),
    ],
)
def test_wrong_architecture_is_told_what_is_right(arch: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        resolve_architecture("dinov3", arch)
