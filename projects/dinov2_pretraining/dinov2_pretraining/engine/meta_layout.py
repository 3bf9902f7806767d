"""A backbone under the names that facebookresearch/dinov2 and dinov3 load.

Shape legend: C channels, N patches of the position table, D channels of an attention head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_GATED = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"}


def to_meta_layout(vit: Any, mask_token: Tensor) -> dict[str, Tensor]:
    """Weights of a timm ``VisionTransformer`` or ``Eva`` in Meta's layout, float32 on the CPU.

    Args:
        vit (VisionTransformer | Eva): Of a DINOv2 or DINOv3 backbone.
        mask_token (Tensor): ``[1, C]``.

    Returns:
        dict[str, Tensor]: Meta's names.

    Raises:
        ValueError: If the backbone has parts that Meta's layout has no name for.
    """
    weights = {name: value.detach().float().cpu() for name, value in vit.state_dict().items()}
    rotary = "pos_embed" not in weights
    named = _dinov3(weights, vit) if rotary else _dinov2(weights)
    return {"mask_token": mask_token.detach().float().cpu().view(1, -1), **named}


def _dinov2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    gated = weights["blocks.0.mlp.fc1.weight"].shape[0] == (
        2 * weights["blocks.0.mlp.fc2.weight"].shape[1]
    )
    for name, value in weights.items():
        if gated:
            name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        named["register_tokens" if name == "reg_token" else name] = value
    if "register_tokens" in named:
        # timm folds the class token's position into the token itself.
        table = named["pos_embed"]
        named["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    return named


def _dinov3(weights: Mapping[str, Tensor], vit: Any) -> dict[str, Tensor]:
    rope = getattr(vit, "rope", None)
    if getattr(rope, "temperature", None) is None:
        raise ValueError(
            f"{type(vit).__name__} has neither a position table nor DINOv3's rotary positions: "
            "Meta's layout has no names for it. exported/backbone.safetensors holds its weights."
        )
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("rope."):
            continue
        match = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
        if match is None:
            named["storage_tokens" if name == "reg_token" else name] = value
            continue
        block, part = match.groups()
        if part in ("gamma_1", "gamma_2"):
            part = f"ls{part[-1]}.gamma"
        elif part == "attn.q_bias":
            key = torch.zeros_like(value)
            bias = torch.cat((value, key, weights[f"{block}attn.v_bias"]))
            named[f"{block}attn.qkv.bias"] = bias
            # The key has no bias; Meta's layers hold a mask for it.
            ones = torch.ones_like(value)
            named[f"{block}attn.qkv.bias_mask"] = torch.cat((ones, key, ones))
            continue
        elif part in ("attn.v_bias", "attn.k_bias"):
            continue
        elif f"{block}mlp.fc1_g.weight" in weights and part.startswith("mlp."):
            _, layer, kind = part.split(".")
            part = f"mlp.{_GATED[layer]}.{kind}"
        named[block + part] = value
    assert rope is not None
    exponents = torch.arange(rope.dim // 4, dtype=torch.float32) * 4 / rope.dim
    named["rope_embed.periods"] = rope.temperature**exponents
    return named
