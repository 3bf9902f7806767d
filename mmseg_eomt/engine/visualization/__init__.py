"""Backends for curves and pictures."""

from __future__ import annotations

from mmseg_eomt.engine.visualization.mlflow_backend import MLflowBackend
from mmseg_eomt.engine.visualization.pictures import comparison, default_palette
from mmseg_eomt.engine.visualization.wandb_backend import WandbBackend

__all__ = ["MLflowBackend", "WandbBackend", "comparison", "default_palette"]
