"""Decode heads."""

from __future__ import annotations

from mmseg_eomt.models.decode_heads.eomt_head import EoMTHead, Prediction

__all__ = ["EoMTHead", "Prediction"]
