"""Backbones, head, loss and segmentor. Importing this package registers them."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
from mmseg_eomt.models import backbones, decode_heads, losses, segmentors

__all__ = ["backbones", "decode_heads", "losses", "segmentors"]
