"""Our models as a folder that transformers' ``EomtForUniversalSegmentation`` (or its DINOv3 twin)
loads with ``from_pretrained``.

Written without transformers: two JSON files and one of tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.checkpoints.foreign.hf import EPSILON, HEADER_FIELD, HEADS, ROPE_THETA
from mmseg_eomt.header import ModelHeader
from mmseg_eomt.models.architectures import GATED_ALIGNMENT, Architecture, resolve_architecture
from mmseg_eomt.models.positions import resample_matrix, resample_table
from mmseg_eomt.models.vit import padded_size

_BLOCK = re.compile(r"backbone\.vit\.blocks\.(\d+)\.(.+)")
# Ours -> transformers', inside a block.
_COMMON = {
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
}


def save_hf_folder(folder: Path, header: ModelHeader, state: Mapping[str, Tensor]) -> list[str]:
    """Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Args:
        folder: To be made.
        header: The model.
        state: Its weights by name.

    Returns:
        Notes on what transformers does otherwise.

    Raises:
        ValueError: If transformers has no such model.
    """
    arch = _architecture(header)
    side, notes = _image_side(header)
    header, state = _at_side(header, dict(state), side)
    prefix = {"dinov2": "eomt", "dinov3": "eomt_dinov3"}[header.family]
    tensors = _renamed(state, arch)
    # transformers masks the attention in testing while these are above zero.
    tensors["attn_mask_probs"] = torch.zeros(header.num_joint_blocks)
    weight = torch.ones(header.num_classes + 1)
    weight[-1] = 0.1
    tensors["criterion.empty_weight"] = weight
    folder.mkdir()
    save_file(
        {name: value.contiguous().clone() for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = _config(header, arch, prefix, side)
    for name, content in (("config", config), ("preprocessor_config", _processor(header, side))):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return notes


def _architecture(header: ModelHeader) -> Architecture:
    if header.family not in ("dinov2", "dinov3"):
        raise ValueError(
            f"A model on timm's {header.architecture!r} cannot become one of transformers, whose "
            "EoMT has DINOv2 or DINOv3 only."
        )
    given = header.architecture
    arch = resolve_architecture(header.family, given)
    if header.backbone_args.get("registers") is False:
        arch = resolve_architecture(
            header.family,
            f"{given.removesuffix('-noreg')}-noreg"
            if isinstance(given, str)
            else {**given, "num_registers": 0},
        )
    dims, hidden = arch.embed_dims, arch.mlp_dims
    if header.family == "dinov3":
        if arch.gated_mlp and header.activation != "silu":
            raise ValueError(
                "transformers' EoMT-DINOv3 uses one activation for gated MLPs, the mask head and "
                "the upscaling, where this model has SiLU in the gates and GELU in the heads: it "
                "cannot be expressed there. Models without gated MLPs can (all but the 'plus' "
                "sizes and ViT-7B), and those trained with model.decode_head.activation='silu'."
            )
        _check_plain_activation(header, arch)
        return arch
    _check_plain_activation(header, arch)
    ratio = (
        next((r for r in range(1, 17) if _swiglu_width(dims, r) == hidden), None)
        if arch.gated_mlp
        else (hidden // dims if hidden % dims == 0 else None)
    )
    if ratio is None:
        raise ValueError(
            f"transformers' EoMT has MLPs of a whole multiple of the {dims} channels; this model's "
            f"have {hidden}."
        )
    return arch


def _check_plain_activation(header: ModelHeader, arch: Architecture) -> None:
    if not arch.gated_mlp and header.activation != "gelu":
        raise ValueError(
            "transformers' EoMT uses one activation for MLPs and heads, where this model has GELU "
            f"in the MLPs and {header.activation!r} in the heads: it cannot be expressed there."
        )


def _swiglu_width(dims: int, ratio: int) -> int:
    """Width of transformers' gated MLP: two thirds, up to a multiple of 8."""
    width = int(dims * ratio * 2 / 3)
    return width + -width % GATED_ALIGNMENT


def _image_side(header: ModelHeader) -> tuple[int, list[str]]:
    notes = []
    size = header.test_size or header.window_size or header.image_size
    window = header.window_size or (min(size), min(size))
    if window[0] != window[1] or min(size) != window[0] or header.test_mode != "window":
        notes.append(
            f"Tested here in mode {header.test_mode!r} at {size} with windows {window}; "
            "transformers takes squares of the short side."
        )
    side = max(window)
    fit = padded_size(side, header.patch_size)[0]
    if fit != side:
        notes.append(
            f"{side} pixels are no multiple of the patch size {header.patch_size}: transformers "
            f"gets images of {fit}, where they are padded here, so results differ slightly."
        )
    return fit, notes


def _at_side(
    header: ModelHeader, state: dict[str, Tensor], side: int
) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Brings a learned position table to the grid of the images, as our model does at run time."""
    name = "backbone.vit.pos_embed"
    if header.family == "dinov3" or padded_size(header.image_size, header.patch_size) == (
        side,
        side,
    ):
        return header, state
    old = tuple(s // header.patch_size for s in padded_size(header.image_size, header.patch_size))
    table = state[name]
    prefix = table.shape[1] - old[0] * old[1]
    rows, columns = (
        resample_matrix(length, side // header.patch_size, device=table.device) for length in old
    )
    patches = resample_table(table[:, prefix:], (old[0], old[1]), rows, columns)
    state[name] = torch.cat((table[:, :prefix], patches), dim=1)
    return header.replace(image_size=(side, side)), state


def _renamed(state: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    vit, rotary = "backbone.vit.", arch.family == "dinov3"
    theirs: dict[str, Tensor] = {}
    cls_token = state.pop(f"{vit}cls_token")
    kernel = "embeddings.patch_embeddings." + ("" if rotary else "projection.")
    if not rotary:
        table = state.pop(f"{vit}pos_embed")
        if not arch.num_registers:  # cls has a position of its own, which transformers has not
            cls_token, table = cls_token + table[:, :1], table[:, 1:]
        theirs["embeddings.position_embeddings.weight"] = table[0]
    theirs["embeddings.cls_token"] = cls_token
    theirs["embeddings.register_tokens"] = state.pop(
        f"{vit}reg_token", cls_token.new_zeros(1, 0, arch.embed_dims)
    )
    heads = {ours: name for name, ours in HEADS.items()}
    prefixes = {f"{vit}patch_embed.proj.": kernel, f"{vit}norm.": "layernorm.", **heads}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is not None:
            parts = _block(block[2], value, arch)
            theirs.update({f"layers.{block[1]}.{part}": v for part, v in parts.items()})
        elif name.startswith("decode_head.upscale."):
            rest = name.removeprefix("decode_head.upscale.").replace(".norm.", ".layernorm2d.")
            theirs[f"upscale_block.block.{rest}"] = value
        else:
            start = next(p for p in prefixes if name.startswith(p))
            theirs[prefixes[start] + name[len(start) :]] = value
    return theirs


def _block(name: str, value: Tensor, arch: Architecture) -> dict[str, Tensor]:
    """Names and tensors in transformers of one tensor of a block."""
    rotary = arch.family == "dinov3"
    if name in _COMMON:
        return {_COMMON[name]: value}
    module, _, kind = name.rpartition(".")
    if module == "attn.qkv":
        parts = value.chunk(3)
        return {f"attention.{x}_proj.{kind}": p for x, p in zip("qkv", parts, strict=True)}
    if module == "attn.proj":
        return {f"attention.{'o_proj' if rotary else 'out_proj'}.{kind}": value}
    if module in ("mlp.fc1_g", "mlp.fc1_x"):
        return {f"mlp.{'gate_proj' if module == 'mlp.fc1_g' else 'up_proj'}.{kind}": value}
    if module == "mlp.fc1" and arch.gated_mlp:
        gate, up = value.chunk(2)
        return {f"mlp.gate_proj.{kind}": gate, f"mlp.up_proj.{kind}": up}
    if module in ("mlp.fc1", "mlp.fc2") and (rotary or arch.gated_mlp):
        return {f"mlp.{'up_proj' if module == 'mlp.fc1' else 'down_proj'}.{kind}": value}
    return {name: value}


def _config(header: ModelHeader, arch: Architecture, kind: str, side: int) -> dict[str, Any]:
    rotary = header.family == "dinov3"
    model = "EomtDinov3ForUniversalSegmentation" if rotary else "EomtForUniversalSegmentation"
    config: dict[str, Any] = {
        "architectures": [model],
        "model_type": kind,
        "dtype": "float32",
        "hidden_size": arch.embed_dims,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.num_heads,
        "num_register_tokens": arch.num_registers,
        "hidden_act": header.activation,
        "layer_norm_eps": EPSILON[kind],
        "image_size": side,
        "patch_size": header.patch_size,
        "num_channels": header.in_channels,
        "num_blocks": header.num_joint_blocks,
        "num_queries": header.num_queries,
        "num_upscale_blocks": header.num_upscale_blocks,
        "id2label": {str(index): name for index, name in enumerate(header.classes)},
        "label2id": {name: index for index, name in enumerate(header.classes)},
        # Ids, colours and test size, for which transformers has no fields.
        HEADER_FIELD: header.to_json(),
    }
    if rotary:
        config.update(
            intermediate_size=arch.mlp_dims,
            use_gated_mlp=arch.gated_mlp,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            # Only moves coordinates in training; off as in our own default.
            pos_embed_rescale=None,
        )
    else:
        config.update(use_swiglu_ffn=arch.gated_mlp, mlp_ratio=_mlp_ratio(arch))
    return config


def _mlp_ratio(arch: Architecture) -> int:
    if not arch.gated_mlp:
        return arch.mlp_dims // arch.embed_dims
    return next(r for r in range(1, 17) if _swiglu_width(arch.embed_dims, r) == arch.mlp_dims)


def _processor(header: ModelHeader, side: int) -> dict[str, Any]:
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side, "longest_edge": None},
        "resample": 2,
        "do_split_image": True,
        "do_pad": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in header.mean],
        "image_std": [value / 255 for value in header.std],
        "ignore_index": None,
    }
