"""The mask token that a file of released weights may hold beside the backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmseg_eomt.checkpoints.backbone_weights import locate
from mmseg_eomt.checkpoints.foreign.source_file import read_weights

# Meta's name and transformers'.
NAMES = ("mask_token", "embeddings.mask_token")


def stored_mask_token(backbone: Any) -> Tensor | None:
    """Mask token ``[C]`` of the file that ``backbone.pretrained`` names; None where it has none.

    EoMT has no use for it, so loading a backbone leaves it out; pretraining goes on with it.

    Args:
        backbone (ViTBackbone): With ``pretrained``.
    """
    weights = read_weights(locate(backbone.pretrained, hub_name=backbone.hub_name))
    for name in NAMES:
        token = weights.get(name)
        if token is not None and token.numel() == backbone.embed_dims:
            return token.float().flatten()
    return None
