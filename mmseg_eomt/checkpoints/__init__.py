"""Files of weights: our own, and in `foreign` those of other programs."""

from __future__ import annotations

from mmseg_eomt import compat

compat.apply()  # before anything here imports mmseg
