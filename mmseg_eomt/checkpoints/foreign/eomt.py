"""The official EoMT layout (tue-mps/eomt): ``.bin`` files, Lightning checkpoints, delta weights.

DINOv2 encoders have timm's names; DINOv3 encoders those of transformers, renamed to look like
timm's. Tables: ``tests/checkpoints/official_layout.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.checkpoints.foreign.foreign_model import ForeignModel
from mmseg_eomt.checkpoints.foreign.hf import convert_hf

_ENCODER = "network.encoder.backbone."
_HEADS = {
    "network.q.": "decode_head.query.",
    "network.class_head.": "decode_head.class_head.",
    "network.mask_head.": "decode_head.mask_head.",
    "network.upscale.": "decode_head.upscale.",
}
# Of training only, or read apart.
_BESIDE = (
    "network.attn_mask_probs",
    "network.encoder.pixel_mean",
    "network.encoder.pixel_std",
    "criterion.empty_weight",
)
# A norm's scale is about 1; fine-tuning moves it by far less than this (a step of AdamW moves a
# weight by the learning rate at most: 1e-4 falling to 0).
_DELTA_SCALE = 0.1


def is_official_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the official LightningModule."""
    return any(name.startswith("network.") for name in weights)


def read_official(
    weights: Mapping[str, Tensor], *, origin: str, base: Mapping[str, Tensor] | None = None
) -> ForeignModel:
    """Renames official weights.

    Args:
        weights: As :func:`is_official_layout` accepts.
        origin: Names the file in errors.
        base: Weights of the pretrained backbone with timm's names, that delta weights are added
            to; None for a file that is complete.

    Raises:
        ValueError: If delta weights come without a base, a base with complete weights, or the two
            do not fit each other.
    """
    weights = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    state: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_ENCODER):
            encoder[name[len(_ENCODER) :]] = value
        elif name not in _BESIDE:
            head = next((h for h in _HEADS if name.startswith(h)), None)
            state[name if head is None else _HEADS[head] + name[len(head) :]] = value
    if any(".attention.q_proj." in name for name in encoder):
        encoder = _from_transformers(encoder)
    found = ForeignModel("official EoMT", state)
    delta = _looks_like_delta(encoder)
    if base is None:
        if delta:
            raise ValueError(
                f"{origin}: the encoder's norms are about 0, so these are DELTA weights: "
                "differences to the pretrained backbone, as the official DINOv3 models are "
                "published. Give the backbone too: --base FILE (Meta's, timm's or transformers')."
            )
    else:
        encoder = _added(encoder, base, origin)
        found.layout = "official EoMT, delta weights"
    state.update({f"backbone.vit.{name}": value for name, value in encoder.items()})
    probabilities = weights.get("network.attn_mask_probs")
    if probabilities is not None and probabilities.ndim == 1:
        found.num_joint_blocks = len(probabilities)
    else:
        found.notes.append("The file does not say the number of joint blocks: the usual is taken.")
    if base is None:  # in delta files these are differences too
        found.mean, found.std = _normalisation(weights)
    return found


def _from_transformers(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in encoder.items():
        if name.startswith("patch_embed."):
            name = "embeddings." + name.removeprefix("patch_embed.")
        elif name.startswith("blocks."):
            name = "layer." + name.removeprefix("blocks.")
        renamed[name] = value
    if "embeddings.cls_token" not in renamed:
        return dict(encoder)  # the check of names reports what is missing
    return convert_hf(renamed)


def _looks_like_delta(encoder: Mapping[str, Tensor]) -> bool:
    norms = [
        value.float().abs().mean()
        for name, value in encoder.items()
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) and value.numel()
    ]
    return bool(norms) and float(torch.stack(norms).median()) < _DELTA_SCALE


def _added(
    delta: Mapping[str, Tensor], base: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    misfit = [
        f"{name} {_shape(delta.get(name))} in the delta, {_shape(base.get(name))} in the base"
        for name in dict.fromkeys((*delta, *base))
        if _shape(delta.get(name)) != _shape(base.get(name))
    ]
    if misfit:
        raise ValueError(
            f"{origin}: the base does not fit the delta weights (timm's names): "
            f"{'; '.join(misfit[:8])}{' ...' if len(misfit) > 8 else ''}. Take the backbone that "
            "they were made from: DINOv3 of the same size."
        )
    kernels = [name for name in delta if name.endswith(".weight") and delta[name].ndim > 1]
    apart = sum(float((delta[n].float() - base[n].float()).square().sum()) for n in kernels)
    length = sum(float(delta[n].float().square().sum()) for n in kernels)
    if apart < length / 4 or not _looks_like_delta(delta):
        raise ValueError(
            f"{origin}: complete weights, not differences to a backbone: leave out --base."
        )
    return {name: base[name].float() + value.float() for name, value in delta.items()}


def _shape(value: Tensor | None) -> Any:
    return "missing" if value is None else tuple(value.shape)


def _normalisation(
    weights: Mapping[str, Tensor],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of the file, brought from the scale of 1 to that of 255."""
    pair = [weights.get(f"network.encoder.pixel_{name}") for name in ("mean", "std")]
    values = [
        None if value is None else tuple(round(v * 255, 4) for v in value.flatten().tolist())
        for value in pair
    ]
    mean, std = values
    if not mean or not std or len(mean) != len(std) or min(std) <= 0:
        return None, None
    return mean, std
