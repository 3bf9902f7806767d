"""The losses, each in memory that does not grow with the number of prototypes times rows."""

from __future__ import annotations

from dinov2_pretraining.losses.centring import Centre, sinkhorn_bias
from dinov2_pretraining.losses.koleo import koleo_loss
from dinov2_pretraining.losses.prototype_loss import PrototypeLoss, prototype_loss

__all__ = ["Centre", "PrototypeLoss", "koleo_loss", "prototype_loss", "sinkhorn_bias"]
