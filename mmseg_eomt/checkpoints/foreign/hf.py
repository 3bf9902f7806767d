"""transformers' layouts, read: backbones in timm's names, EoMT and EoMT-DINOv3 with their config.

Models: ``Dinov2Model``, ``Dinov2WithRegistersModel``, ``DINOv3ViTModel`` of transformers 4.x and
5.x; 5.x still writes the names of 4.x for some and renames in memory. The tables are in
``tests/checkpoints/foreign/test_hf.py``, checked against transformers itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.checkpoints.describe import ClassNames, names_of
from mmseg_eomt.checkpoints.foreign.foreign_model import ForeignModel, positive
from mmseg_eomt.header import ModelHeader

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


# model_type -> epsilon of the norms that our backbones compute with.
EPSILON = {"eomt": 1e-6, "eomt_dinov3": 1e-5}
HEADER_FIELD = "mmseg_eomt"
"""Field of config.json with our header, for what transformers has no field for."""

HEADS = {
    "query.": "decode_head.query.",
    "class_predictor.": "decode_head.class_head.",
    "mask_head.fc1.": "decode_head.mask_head.0.",
    "mask_head.fc2.": "decode_head.mask_head.2.",
    "mask_head.fc3.": "decode_head.mask_head.4.",
}
_UPSCALE = "upscale_block.block."
# Of training only, or made anew.
_BESIDE = ("attn_mask_probs", "criterion.empty_weight", "embeddings.mask_token")
ROPE_THETA = 100.0


def is_hf_eomt_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' EoMT."""
    return "query.weight" in weights and "class_predictor.weight" in weights


def read_hf_eomt(
    weights: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] | None,
    processor: Mapping[str, Any] | None,
    origin: str,
) -> ForeignModel:
    """Renames the weights and reads the configuration.

    Args:
        weights: As :func:`is_hf_eomt_layout` accepts.
        config: Content of ``config.json``.
        processor: Content of ``preprocessor_config.json``, where there is one.
        origin: Names the file in errors.

    Raises:
        ValueError: If the configuration is missing, or of a model that computes otherwise.
    """
    if config is None:
        raise ValueError(
            f"{origin}: these are weights of transformers' EoMT, whose config.json is needed too "
            "(attention heads, joint blocks, classes). Give the folder that holds both."
        )
    family = _checked_config(config, origin)
    state = _renamed(weights, config, family)
    image = config.get("image_size")
    side = image if isinstance(image, int) else None
    if isinstance(image, (list, tuple)) and len(image) == 2 and image[0] == image[1]:
        side = image[0]
    side = positive(side, "image_size in config.json", origin)
    found = ForeignModel(
        "transformers EoMT" if family == "eomt" else "transformers EoMT-DINOv3",
        state,
        num_heads=positive(config.get("num_attention_heads"), "num_attention_heads", origin),
        num_joint_blocks=positive(config.get("num_blocks"), "num_blocks", origin),
        image_size=(side, side),
        names=_names(config, origin),
        activation=str(config.get("hidden_act", "gelu")),
        header=_header(config, origin),
    )
    if processor is not None:
        _read_processor(found, processor, origin)
    return found


def _checked_config(config: Mapping[str, Any], origin: str) -> str:
    family = config.get("model_type")
    if family not in EPSILON:
        raise ValueError(
            f"{origin}: model_type in config.json is {family!r}; the weights are those of "
            f"{' or '.join(EPSILON)}."
        )
    problems = []
    # Heads and upscaling have this activation; so have plain MLPs, and DINOv3's gates.
    activation = config.get("hidden_act", "gelu")
    if family == "eomt_dinov3" and config.get("use_gated_mlp", False):
        allowed: tuple[str, ...] = ("silu",)
    else:
        allowed = ("gelu", "silu") if config.get("use_swiglu_ffn", False) else ("gelu",)
    if activation not in allowed:
        problems.append(f"hidden_act is {activation!r}, such a model has {' or '.join(allowed)}")
    epsilon = config.get("layer_norm_eps", 1e-6)
    if not isinstance(epsilon, (int, float)) or not math.isclose(epsilon, EPSILON[family]):
        problems.append(
            f"layer_norm_eps is {epsilon!r}, {family} computes with {EPSILON[family]:g} here"
        )
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    theta = theta if theta is not None else config.get("rope_theta") or ROPE_THETA
    if family == "eomt_dinov3" and theta != ROPE_THETA:
        problems.append(f"rope_theta is {theta!r}, DINOv3 has {ROPE_THETA:g}")
    if problems:
        raise ValueError(
            f"{origin}: config.json describes another model than EoMT: {'; '.join(problems)}."
        )
    return str(family)


def _renamed(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], family: str
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for name, value in weights.items():
        head = next((h for h in HEADS if name.startswith(h)), None)
        if name in _BESIDE:
            continue
        if head is not None:
            state[HEADS[head] + name[len(head) :]] = value
        elif name.startswith(_UPSCALE):
            ours = name[len(_UPSCALE) :].replace(".layernorm2d.", ".norm.")
            state[f"decode_head.upscale.{ours}"] = value
        elif name == "embeddings.position_embeddings.weight" and value.ndim == 2:
            # Patches only, where a backbone's table has a row for cls before them.
            row = torch.zeros(1, value.shape[1], dtype=value.dtype)
            encoder["embeddings.position_embeddings"] = torch.cat((row, value))[None]
        elif name != "embeddings.register_tokens" or value.numel():
            encoder[name] = value
    if "embeddings.cls_token" in encoder:
        encoder = convert_hf(encoder)
    if family == "eomt_dinov3":
        _fill_biases(encoder, config)
    return {**state, **{f"backbone.vit.{name}": value for name, value in encoder.items()}}


def _fill_biases(encoder: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Zeros for biases that the configuration says the model goes without."""
    without = {
        "query_bias": ("attn.q_bias",),
        "value_bias": ("attn.v_bias",),
        "proj_bias": ("attn.proj.bias",),
        "mlp_bias": ("mlp.fc1.bias", "mlp.fc2.bias"),
    }
    for key, names in without.items():
        if config.get(key, True):
            continue
        for weight in [n for n in encoder if n.endswith(".norm1.weight")]:
            block = weight.removesuffix("norm1.weight")
            for name in names:
                source = encoder.get(f"{block}{name.removesuffix('.bias')}.weight")
                size = encoder[weight].shape[0] if source is None else source.shape[0]
                encoder.setdefault(f"{block}{name}", torch.zeros(size))


def _names(config: Mapping[str, Any], origin: str) -> ClassNames | None:
    labels = config.get("id2label")
    if labels is None:
        return None
    names = names_of(labels, f"id2label of {origin}")
    if sorted(names.ids) != list(range(len(names.ids))):
        raise ValueError(
            f"{origin}: id2label in config.json has the ids {list(names.ids)[:12]}; expected 0 to "
            f"{len(names.ids) - 1}."
        )
    ordered = dict(sorted(zip(names.ids, names.names, strict=True)))
    return ClassNames(tuple(ordered.values()), tuple(ordered), source=names.source)


def _header(config: Mapping[str, Any], origin: str) -> ModelHeader | None:
    stored = config.get(HEADER_FIELD)
    if not isinstance(stored, str):
        return None
    return ModelHeader.from_json(stored, source=f"{origin}, {HEADER_FIELD} in config.json")


def _read_processor(found: ForeignModel, processor: Mapping[str, Any], origin: str) -> None:
    """Normalisation and size, on the scale of pixels from 0 to 255."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    for name, value in (("image_mean", mean), ("image_std", std), ("rescale_factor", [factor])):
        numbers = isinstance(value, list) and all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in value
        )
        if not numbers or not value or (name != "image_mean" and min(value) <= 0):
            raise ValueError(
                f"{origin}: {name} in preprocessor_config.json is {value!r}; expected numbers."
            )
    found.mean = tuple(round(value / factor, 6) for value in mean or ())
    found.std = tuple(round(value / factor, 6) for value in std or ())
    size = processor.get("size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    if side is not None and found.image_size is not None:
        side = positive(side, "size in preprocessor_config.json", origin)
        if side != found.image_size[0]:
            raise ValueError(
                f"{origin}: preprocessor_config.json brings images to {side} pixels, but the model "
                f"of config.json takes {found.image_size[0]}."
            )
    if not processor.get("do_split_image", False):
        found.notes.append(
            "transformers' processor pads the image to a square; here windows along its long side "
            "are taken, as in EoMT's published semantic evaluation."
        )
