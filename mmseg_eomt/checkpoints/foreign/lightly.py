"""LightlyTrain's EoMT layout: ``exported_*.pt``, and ``last.ckpt`` or ``best.ckpt`` of a run.

Facts of the files only, found by reading files: names and shapes of tensors, and plain settings.
The encoder has Meta's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.checkpoints.describe import names_of
from mmseg_eomt.checkpoints.foreign.foreign_model import ForeignModel, positive
from mmseg_eomt.checkpoints.foreign.timm import rename_meta
from mmseg_eomt.models.backbones import ROPE_TEMPERATURE

WEIGHTS, SETTINGS, KIND = "train_model", "model_init_args", "model_class_path"
_EOMT = "EoMTSemanticSegmentation"
_ENCODER = "backbone."
_HEADS = {
    "queries.": "decode_head.query.",
    "class_head.": "decode_head.class_head.",
    "mask_head.": "decode_head.mask_head.",
    "upscale.": "decode_head.upscale.",
}


def is_lightly_content(content: object) -> bool:
    """Whether a PyTorch file's content is laid out as LightlyTrain's."""
    return isinstance(content, dict) and WEIGHTS in content and SETTINGS in content


def lightly_weights(content: Mapping[str, Any], *, origin: str) -> dict[str, Tensor]:
    """The model's own weights, without the loss's and without prefixes.

    Raises:
        ValueError: If the file is of another kind of model, or holds no weights.
    """
    kind, weights = content.get(KIND), content[WEIGHTS]
    if not isinstance(kind, str) or not kind.endswith(_EOMT):
        raise ValueError(
            f"{origin}: a file of LightlyTrain for {kind!r}; only its EoMT for semantic "
            f"segmentation ('...{_EOMT}') can be converted."
        )
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{origin}: {WEIGHTS!r} of LightlyTrain is no table of weights.")
    return {
        str(name).removeprefix("model."): value
        for name, value in weights.items()
        if not str(name).startswith("criterion.")
    }


def read_lightly(weights: Mapping[str, Tensor], settings: object, *, origin: str) -> ForeignModel:
    """Renames the weights and reads classes, ids, normalisation and size.

    Args:
        weights: Of :func:`lightly_weights`.
        settings: The file's 'model_init_args'.
        origin: Names the file in errors.

    Raises:
        ValueError: If a setting is missing or no plain value.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{origin}: {SETTINGS!r} is a {type(settings).__name__}, not settings.")
    encoder = {
        name[len(_ENCODER) :]: value for name, value in weights.items() if name.startswith(_ENCODER)
    }
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        head = next((h for h in _HEADS if name.startswith(h)), None)
        if not name.startswith(_ENCODER):
            state[name if head is None else _HEADS[head] + name[len(head) :]] = value
    state.update({f"backbone.vit.{n}": v for n, v in rename_meta(encoder).items()})
    size = _size(settings.get("image_size"), origin)
    # Testing takes squares of the short side, whatever the training crop was.
    side = min(size)
    found = ForeignModel(
        "LightlyTrain EoMT",
        state,
        num_heads=None,
        num_joint_blocks=positive(settings.get("num_joint_blocks"), "num_joint_blocks", origin),
        image_size=(side, side),
        names=names_of(settings.get("classes"), f"classes of {origin}"),
    )
    _read_normalisation(found, settings.get("image_normalize"), origin)
    patch = encoder.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4 and side % patch.shape[-1]:
        _fit_size(found, side, int(patch.shape[-1]), rotary="storage_tokens" in encoder)
    periods = encoder.get("rope_embed.periods")
    if periods is not None and patch is not None:
        _read_periods(found, periods, int(patch.shape[0]), origin)
    return found


def _size(value: object, origin: str) -> tuple[int, int]:
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{origin}: image_size is {value!r}; expected (height, width) in pixels.")
    height, width = (positive(side, "image_size", origin) for side in value)
    return height, width


def _read_normalisation(found: ForeignModel, value: object, origin: str) -> None:
    if value is None:
        found.mean, found.std = (0.0,), (255.0,)  # pixels from 0 to 1
        return
    pair = [value.get(key) for key in ("mean", "std")] if isinstance(value, Mapping) else [None]
    for numbers in pair:
        plain = isinstance(numbers, (list, tuple)) and all(
            isinstance(n, (int, float)) and math.isfinite(n) for n in numbers
        )
        if not plain or not numbers:
            raise ValueError(f"{origin}: image_normalize is {value!r}; expected mean and std.")
    mean, std = pair
    found.mean = tuple(round(v * 255, 6) for v in mean or ())
    found.std = tuple(round(v * 255, 6) for v in std or ())


def _fit_size(found: ForeignModel, side: int, patch: int, *, rotary: bool) -> None:
    """An image size that is no multiple of the patch: the two programs then differ."""
    if rotary:
        fit, what = side - side % patch, "leaves out the rest at the right and at the bottom"
    else:
        fit, what = side + -side % patch, f"stretches each window to {side + -side % patch}"
    found.image_size = (fit, fit)
    found.notes.append(
        f"The image size {side} is no multiple of the patch size {patch}: LightlyTrain {what}. "
        f"Here images are brought to {fit} instead, so results differ slightly."
    )


def _read_periods(found: ForeignModel, periods: Tensor, dims: int, origin: str) -> None:
    """Tells the number of heads by the rotary periods, four of whose inverses share a head."""
    if periods.ndim != 1 or not len(periods) or dims % (4 * len(periods)):
        raise ValueError(
            f"{origin}: backbone.rope_embed.periods {tuple(periods.shape)} fits no head of a "
            f"backbone of {dims} channels."
        )
    found.num_heads = dims // (4 * len(periods))
    exact = ROPE_TEMPERATURE ** (torch.arange(len(periods)) / len(periods))
    if torch.allclose(periods.float(), exact, rtol=1e-5):
        return
    if not torch.allclose(periods.float(), exact, rtol=2**-8):  # a step of bfloat16
        raise ValueError(
            f"{origin}: backbone.rope_embed.periods are {periods.tolist()[:4]}..., DINOv3 has "
            f"{exact.tolist()[:4]}...."
        )
    found.notes.append(
        "The rotary periods of the file are rounded to bfloat16, as Meta published them; here "
        "they are exact, so logits differ slightly."
    )
