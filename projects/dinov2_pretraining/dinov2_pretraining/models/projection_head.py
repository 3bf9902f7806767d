"""DINO's projection head: an MLP into a bottleneck, compared with prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # facebookresearch/dinov2, in half precision


class ProjectionHead(nn.Module):
    """Three linear layers with GELU, then vectors of length 1 (arXiv 2104.14294, section 3.1).

    The prototypes are rows of length 1 too: only their directions are learnt. They are no layer of
    the forward pass, because the loss takes the products with them piece by piece.

    Args:
        in_channels (int): Of the backbone's tokens.
        hidden_channels (int): Defaults to 2048.
        bottleneck_channels (int): D. Defaults to 256.
        num_prototypes (int): K. Defaults to 65536.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_prototypes: int = 65536,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, bottleneck_channels),
        )
        self.last_layer = nn.Parameter(torch.empty(num_prototypes, bottleneck_channels))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.last_layer, std=0.02)

    @property
    def num_prototypes(self) -> int:
        """K."""
        return len(self.last_layer)

    @property
    def bottleneck_channels(self) -> int:
        """D."""
        return self.last_layer.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Turns tokens ``[..., C]`` into vectors ``[..., D]`` of length 1, float32."""
        return F.normalize(self.mlp(tokens).float(), dim=-1, eps=EPSILON)

    def prototypes(self) -> Tensor:
        """Prototypes ``[K, D]`` of length 1."""
        return F.normalize(self.last_layer, dim=-1)
