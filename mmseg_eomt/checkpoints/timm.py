"""timm's layout, and what timm does to make weights fit a model."""

from __future__ import annotations

import math
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
