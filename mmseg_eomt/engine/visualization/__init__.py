"""Backends for curves and pictures."""

from __future__ import annotations

from mmseg_eomt.engine.visualization.mlflow_backend import MLflowBackend
from mmseg_eomt.engine.visualization.wandb_backend import WandbBackend
from mmseg_eomt.images.painting import comparison

__all__ = ["MLflowBackend", "WandbBackend", "comparison"]
