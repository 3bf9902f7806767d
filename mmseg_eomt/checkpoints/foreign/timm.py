"""timm's layout, and Meta's layout of DINOv2 and DINOv3 put into timm's names.

Meta's: github.com/facebookresearch/dinov2 and dinov3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import eva, vision_transformer
from torch import Tensor, nn

# Belong to a classifier, which EoMT replaces.
_CLASSIFIER = ("head.", "attn_pool.", "head_drop.")


def convert_timm(weights: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Fits weights with timm's names to ``vit``.

    A classifier is left out. The norm that average-pooling models keep behind the pooling
    (``fc_norm``) becomes the final norm. Kernel and position table are resampled.

    Args:
        weights (dict[str, Tensor]): timm's names.
        vit (VisionTransformer | Eva): The module to fit.

    Returns:
        dict[str, Tensor]: Weights for ``vit``.
    """
    return filter_by_timm(drop_classifier(weights), vit)


def drop_classifier(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out a classifier; the norm of average-pooling models becomes the final norm."""
    weights = {n: v for n, v in weights.items() if not n.startswith(_CLASSIFIER)}
    if "norm.weight" not in weights:
        weights = {
            n.removeprefix("fc_") if n.startswith("fc_norm.") else n: v for n, v in weights.items()
        }
    return weights


def filter_by_timm(weights: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """timm's ``checkpoint_filter_fn`` for ``vit``, and zeros for q and v biases that are absent.

    DINOv3's released biases are zero, so some files leave them out; a model that is to be
    fine-tuned has them.

    Raises:
        ValueError: If a position table of an unknown grid would have to be resampled.
    """
    target = vit.state_dict()
    if {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in target.items()}:
        return weights  # timm might otherwise guess another grid with as many patches
    _check_grid(weights, vit)
    module = eva if isinstance(vit, eva.Eva) else vision_transformer
    fitted: dict[str, Tensor] = module.checkpoint_filter_fn(dict(weights), vit)
    biases = [n for n in target if n.endswith((".q_bias", ".v_bias"))]
    if not any(name in fitted for name in biases):
        fitted.update({name: torch.zeros(target[name].shape) for name in biases})
    return fitted


def _check_grid(weights: dict[str, Tensor], vit: Any) -> None:
    table = weights.get("pos_embed")
    if table is None or vit.pos_embed is None or table.shape == vit.pos_embed.shape:
        return
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    prefix += "register_tokens" in weights  # Meta: the cls token has a position, registers none
    patches = table.shape[1] - prefix
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"The position table holds {patches} patches, of a grid that is no square, and "
            f"the backbone's grid is {vit.patch_embed.grid_size}. Set image_size to the size "
            "the weights were made with; other inputs are interpolated at run time."
        )


def is_timm_layout(weights: dict[str, Tensor]) -> bool:
    """Whether the names are timm's ``VisionTransformer`` or ``Eva``."""
    return "patch_embed.proj.weight" in weights and any(n.startswith("blocks.0.") for n in weights)


def registered_source(name: str) -> tuple[str | None, str | None]:
    """Where timm's released weights ``name`` lie.

    Args:
        name (str): Model name with or without tag.

    Returns:
        tuple[str | None, str | None]: Repository on the hub, and URL; either may be None.

    Raises:
        ValueError: If timm knows no weights of that name.
    """
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(name)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"timm knows no weights {name!r}: {error} Known: {', '.join(_tags(name)) or 'none'}."
        ) from error
    if config is None or not (config.hf_hub_id or config.url) or config.custom_load:
        raise ValueError(
            f"timm has no weights {name!r} that can be read here. Give a file or URL, or a tag: "
            f"{', '.join(_tags(name)) or 'none is known'}."
        )
    repository = config.hf_hub_id or None
    if repository is not None and repository.endswith("/"):
        repository += ".".join(part for part in (config.architecture, config.tag) if part)
    return repository, config.url if isinstance(config.url, str) and config.url else None


def _tags(name: str) -> list[str]:
    from timm.models import list_pretrained

    return list(list_pretrained(f"{name.split('.')[0]}.*"))


def expected_sizes(vit: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of what a strict load of ``vit`` needs."""
    return {name: value.shape for name, value in vit.state_dict().items()}


# Of pretraining only, or made anew from the sizes. EUPE's files have projectors beside.
_UNUSED = ("mask_token", "rope_embed.", "local_cls_norm.", "projectors.")


def is_meta_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are Meta's: DINOv3's storage tokens, or DINOv2's mask token."""
    if not any(name.startswith("blocks.") for name in weights):
        return False
    return "storage_tokens" in weights or ("mask_token" in weights and "pos_embed" in weights)


def convert_meta(weights: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Turns Meta's weights into those of ``vit``, by timm's own conversion.

    Kernel and position table are resampled to the patch size and grid of ``vit``. What only
    pretraining needs (mask token, DINOv3's ``local_cls_norm`` and ``rope_embed``) is left out.

    Args:
        weights (dict[str, Tensor]): As :func:`is_meta_layout` accepts.
        vit (VisionTransformer | Eva): The module to fit.

    Returns:
        dict[str, Tensor]: timm's names.
    """
    return filter_by_timm(weights, vit)


def rename_meta(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives Meta's weights timm's names, without a model to fit and without resampling.

    DINOv3's biases of q, k and v are multiplied by their mask; the key's must be zero then.

    Args:
        weights (Mapping[str, Tensor]): As :func:`is_meta_layout` accepts.

    Returns:
        dict[str, Tensor]: timm's names; unknown ones are kept.

    Raises:
        ValueError: If a key has a bias, which DINOv3 does not have.
    """
    rotary = "storage_tokens" in weights
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_UNUSED) or name.endswith(".bias_mask"):
            continue
        if rotary and name.endswith(".attn.qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            q, k, v = _masked(value, weights.get(f"{name}_mask")).chunk(3)
            if k.nan_to_num().any():
                raise ValueError(
                    f"{name}: the key has a bias other than zero, which DINOv3's layers do not "
                    "have: the file is of another model."
                )
            renamed[f"{stem}q_bias"], renamed[f"{stem}v_bias"] = q, v
        else:
            renamed[_timm_name(name, rotary=rotary)] = value
    if not rotary and "reg_token" in renamed:
        # timm folds cls' own position into the token when there are registers.
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    """``bias * mask``, where a masked NaN is zero."""
    if mask is None or mask.shape != bias.shape:
        return bias
    if mask.isnan().any():  # as a model has it before weights are loaded: only the key is masked
        q, k, v = bias.chunk(3)
        return torch.cat((q, torch.zeros_like(k), v))
    return torch.where(mask == 0, torch.zeros_like(bias), bias * mask)


def _timm_name(name: str, *, rotary: bool) -> str:
    if name in ("storage_tokens", "register_tokens"):
        return "reg_token"
    if not name.startswith("blocks."):
        return name
    changes = (
        (
            (".ls1.gamma", ".gamma_1"),
            (".ls2.gamma", ".gamma_2"),
            (".mlp.w1.", ".mlp.fc1_g."),
            (".mlp.w2.", ".mlp.fc1_x."),
            (".mlp.w3.", ".mlp.fc2."),
        )
        if rotary
        else ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
    )
    for old, new in changes:
        name = name.replace(old, new)
    return name
