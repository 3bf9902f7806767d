"""Self-supervised pretraining of DINOv2. Importing it registers its components with mmseg.

It lies outside mmseg_eomt and uses it; `mmseg_eomt.pretrain` and the tool of this project find it.
"""

from __future__ import annotations

import mmseg_eomt  # noqa: F401  (mends the mm packages, registers backbones and runner)
from dinov2_pretraining import data, engine, losses, models, monitors

__all__ = ["data", "engine", "losses", "models", "monitors"]
