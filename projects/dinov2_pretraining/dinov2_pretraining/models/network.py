"""What student and teacher each consist of.

Shape legend: B images, C channels, D channels of the bottleneck, K prototypes, M masked patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dinov2_pretraining.models.masked_vit import MaskedViT
from dinov2_pretraining.models.projection_head import ProjectionHead


class Network(nn.Module):
    """An encoder with one head for class tokens and patches, or one for each.

    Args:
        backbone (dict): Of :class:`MaskedViT`.
        head (dict, optional): Of :class:`ProjectionHead`. Defaults to None, its defaults.
        ibot_head (dict, optional): Likewise, for the patches' own. Defaults to None, none.
        drop_path_rate (float): Of :class:`MaskedViT`. Defaults to 0.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        *,
        head: dict[str, Any] | None = None,
        ibot_head: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = MaskedViT(backbone, drop_path_rate=drop_path_rate)
        self.head = ProjectionHead(self.encoder.embed_dims, **(head or {}))
        self.ibot_head = (
            None if ibot_head is None else ProjectionHead(self.encoder.embed_dims, **ibot_head)
        )

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of the patches, which may be that of the class tokens."""
        return self.head if self.ibot_head is None else self.ibot_head

    def global_tokens(
        self, views: Tensor, *, index: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class tokens and masked patches of global views, normed.

        Args:
            views (Tensor): ``[2*B, 3, H, W]``, normalised.
            index (Tensor): ``[M]``, places of masked patches among all patches of the batch.
            masks (Tensor, optional): Bool ``[2*B, N]``, what is hidden. Defaults to None, nothing.

        Returns:
            tuple[Tensor, Tensor]: ``[2*B, C]`` and ``[M, C]``.
        """
        tokens = self.encoder.tokens(views, masks)
        patches = tokens[:, self.encoder.num_prefix_tokens :].flatten(0, 1)
        # Only what is used is normed.
        return self.encoder.norm(tokens[:, 0]), self.encoder.norm(patches.index_select(0, index))

    def project(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Bottleneck vectors of class tokens and patches, at once if they share a head.

        Args:
            classes (Tensor): ``[R, C]``.
            patches (Tensor): ``[M, C]``.

        Returns:
            tuple[Tensor, Tensor]: ``[R, D]`` and ``[M, D]``, of length 1.
        """
        if self.ibot_head is not None:
            return self.head(classes), self.ibot_head(patches)
        both: Tensor = self.head(torch.cat((classes, patches)))
        return both[: len(classes)], both[len(classes) :]

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Prototypes ``[K, D]`` of class tokens and of patches."""
        own = self.head.prototypes()
        return own, own if self.ibot_head is None else self.ibot_head.prototypes()
