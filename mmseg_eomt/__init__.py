"""EoMT semantic segmentation for MMSegmentation. Importing it registers every component."""

from __future__ import annotations

from mmseg_eomt import compat

compat.apply()

from mmseg_eomt import datasets, engine, evaluation, models  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "datasets", "engine", "evaluation", "models"]
