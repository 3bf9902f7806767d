"""Backbones of Meta, timm and transformers as one file of ours, for ``backbone_weights``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.checkpoints.foreign import checked
from mmseg_eomt.checkpoints.hf import convert_hf, is_hf_layout
from mmseg_eomt.checkpoints.meta import is_meta_layout, rename_meta
from mmseg_eomt.checkpoints.sizes import HEAD_DIMS, BackboneSizes, infer_sizes
from mmseg_eomt.checkpoints.timm import drop_classifier, is_timm_layout

BACKBONE_KEY = "mmseg_eomt_backbone"
"""Key of the description in the metadata of the file. It tells such a file from lean weights."""
PREFIX = "backbone.vit."


def rename_backbone(weights: Mapping[str, Tensor], *, origin: str) -> tuple[str, dict[str, Tensor]]:
    """Gives the weights of a backbone timm's names, whatever wrote them. Nothing is resampled.

    Args:
        weights: As read from a file.
        origin: Names the file in errors.

    Returns:
        Name of the layout, and weights with timm's names.

    Raises:
        ValueError: If the layout is unknown.
    """
    weights = dict(weights)
    if weights and all(name.startswith(PREFIX) for name in weights):
        return "mmseg_eomt", {name[len(PREFIX) :]: value for name, value in weights.items()}
    if is_hf_layout(weights):
        layout, renamed = "transformers", convert_hf(_without_pooling(weights))
    elif is_meta_layout(weights):
        layout, renamed = "Meta", rename_meta(weights)
    elif is_timm_layout(weights):
        layout, renamed = "timm", drop_classifier(weights)
    else:
        raise ValueError(
            f"{origin}: none of the known layouts. Allowed: DINOv2 and DINOv3 of Meta, timm or "
            "transformers; EoMT of the official code, transformers or LightlyTrain; files of "
            f"mmseg_eomt. Its first names: {', '.join(list(weights)[:8])}."
        )
    _add_zero_biases(renamed)
    return layout, renamed


def read_backbone(
    weights: Mapping[str, Tensor], *, origin: str, source_names: Mapping[int, str]
) -> tuple[str, BackboneSizes, dict[str, Tensor]]:
    """Renames and checks a backbone of DINOv2 or DINOv3.

    Returns:
        Name of the layout, sizes, and float32 weights with timm's names.

    Raises:
        ValueError: If it is none, or something is missing, left over, misshapen or not finite.
    """
    layout, renamed = rename_backbone(weights, origin=origin)
    kernel = renamed.get("patch_embed.proj.weight")
    unusual = kernel is not None and kernel.ndim and kernel.shape[0] % HEAD_DIMS != 0
    # No weight depends on the number of heads, so that of an unusual backbone need not be known.
    sizes = infer_sizes(renamed, num_heads=1 if unusual else None, origin=origin)
    expected = {name: value.shape for name, value in _empty(sizes).state_dict().items()}
    return layout, sizes, checked(renamed, expected, origin=origin, source_names=source_names)


def save_backbone(path: Path, weights: Mapping[str, Tensor], sizes: BackboneSizes) -> None:
    """Writes a checked backbone as safetensors, under our names."""
    tensors, metadata = our_layout(weights, sizes)
    save_file(tensors, path, metadata=metadata)


def our_layout(
    weights: Mapping[str, Tensor], sizes: BackboneSizes | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under our names and the metadata of the file, as safetensors takes them.

    Args:
        weights: timm's names.
        sizes: What the metadata say; None for a backbone that is neither DINOv2 nor DINOv3.
    """
    metadata = {"format": "pt"}
    if sizes is not None:
        described = {
            "family": sizes.family,
            "architecture": sizes.architecture if isinstance(sizes.architecture, str) else None,
            "patch_size": sizes.patch_size,
            "in_channels": sizes.in_channels,
            "image_size": sizes.grid_size,
        }
        metadata[BACKBONE_KEY] = json.dumps(described)
    return {f"{PREFIX}{name}": value for name, value in weights.items()}, metadata


def _empty(sizes: BackboneSizes) -> Any:
    """The timm module of these sizes, without storage."""
    from mmseg_eomt.models.backbones import DINOv2, DINOv3

    kind = DINOv2 if sizes.family == "dinov2" else DINOv3
    with torch.device("meta"):
        return kind(
            sizes.architecture,
            patch_size=sizes.patch_size,
            image_size=sizes.grid_size or sizes.patch_size,
            in_channels=sizes.in_channels,
        ).vit


def _without_pooling(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out what transformers' classifiers and poolers add."""
    return {n: v for n, v in weights.items() if not n.startswith(("classifier.", "pooler."))}


def _add_zero_biases(weights: dict[str, Tensor]) -> None:
    """DINOv3's biases of q and v are zero as released, so some files leave them out."""
    if "pos_embed" in weights or any(name.endswith("q_bias") for name in weights):
        return
    for name in [n for n in weights if n.endswith(".attn.qkv.weight")]:
        for bias in ("q_bias", "v_bias"):
            full = name.replace("qkv.weight", bias)
            weights.setdefault(full, torch.zeros(weights[name].shape[0] // 3))
