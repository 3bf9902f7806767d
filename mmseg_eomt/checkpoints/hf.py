"""transformers' layout of DINOv2 and DINOv3, put into timm's names.

Models: ``Dinov2Model``, ``Dinov2WithRegistersModel``, ``DINOv3ViTModel`` of transformers 4.x and
5.x; 5.x still writes the names of 4.x for some and renames in memory. The tables are in
``tests/checkpoints/test_hf.py``, checked against transformers itself.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_BLOCK = re.compile(r"(?:encoder\.layer|encoder\.layers|model\.layer|layer|layers)\.(\d+)\.(.+)")

# Names before the final .weight or .bias. Alternatives: 5.x, 4.x.
_QKV = {
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
}
_OUT = ("attention.o_proj", "attention.out_proj", "attention.output.dense")
# The gated halves of DINOv2 (gate_proj, up_proj) are packed afterwards.
_MLP = {
    "mlp.down_proj": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}


def is_hf_layout(weights: dict[str, Tensor]) -> bool:
    """Whether the names are transformers'."""
    return any(name.endswith("embeddings.cls_token") for name in weights)


def convert_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames transformers' weights to timm's, for ``VisionTransformer`` or ``Eva``.

    Names it does not know are kept, so that the strict load reports them.

    Args:
        weights (dict[str, Tensor]): As :func:`is_hf_layout` accepts.

    Returns:
        dict[str, Tensor]: timm's names. Position tables and kernels are not resampled.
    """
    start = next(n for n in weights if n.endswith("embeddings.cls_token"))
    prefix = start[: -len("embeddings.cls_token")]  # e.g. "dinov2." in a classifier's file
    weights = {
        name[len(prefix) :] if name.startswith(prefix) else name: value
        for name, value in weights.items()
    }
    rotary = "embeddings.position_embeddings" not in weights
    converted: dict[str, Tensor] = {}
    projections: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.items():
        block = _BLOCK.fullmatch(name)
        if name == "embeddings.mask_token":
            continue  # pretraining only
        if block is None:
            converted[_EMBEDDINGS.get(name, name)] = value
            continue
        index, rest = int(block[1]), block[2]
        module, _, kind = rest.rpartition(".")
        if module in _QKV:
            projections.setdefault(index, {})[f"{_QKV[module]}.{kind}"] = value
        else:
            converted[f"blocks.{index}.{_block_name(module, kind, rotary=rotary)}"] = value
    for index, parts in projections.items():
        converted.update(
            {f"blocks.{index}.attn.{n}": v for n, v in _fused(parts, rotary=rotary).items()}
        )
    _name_mlp(converted, rotary=rotary)
    if not rotary and "reg_token" in converted:
        # timm folds cls' own position into the token when there are registers.
        positions = converted["pos_embed"]
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
    return converted


def _block_name(module: str, kind: str, *, rotary: bool) -> str:
    """timm's name of ``{module}.{kind}`` inside a block."""
    if kind == "lambda1":
        number = module.removeprefix("layer_scale")
        return f"gamma_{number}" if rotary else f"ls{number}.gamma"
    if module in _OUT:
        return f"attn.proj.{kind}"
    return f"{_MLP.get(module, module)}.{kind}"


def _fused(parts: dict[str, Tensor], *, rotary: bool) -> dict[str, Tensor]:
    """q, k, v of one block as timm holds them."""
    fused: dict[str, Tensor] = {}
    kinds = ("weight",) if rotary else ("weight", "bias")
    for kind in kinds:
        three = [parts.pop(f"{letter}.{kind}", None) for letter in "qkv"]
        if all(part is not None for part in three):
            fused[f"qkv.{kind}"] = torch.cat([part for part in three if part is not None])
    if rotary:  # Eva keeps q and v biases apart; the key has none
        for letter in "qv":
            if f"{letter}.bias" in parts:
                fused[f"{letter}_bias"] = parts.pop(f"{letter}.bias")
    return {**fused, **parts}


def _name_mlp(weights: dict[str, Tensor], *, rotary: bool) -> None:
    """Names the first layer of each MLP, which is plain (up) or gated (gate and up)."""
    for name in [n for n in weights if ".mlp.up_proj." in n]:
        gate = name.replace("up_proj", "gate_proj")
        up = weights.pop(name)
        if gate not in weights:
            weights[name.replace("up_proj", "fc1")] = up
        elif rotary:
            weights[name.replace("up_proj", "fc1_g")] = weights.pop(gate)
            weights[name.replace("up_proj", "fc1_x")] = up
        else:
            weights[name.replace("up_proj", "fc1")] = torch.cat((weights.pop(gate), up))
