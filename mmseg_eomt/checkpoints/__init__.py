"""Files of weights: our own, and in `foreign` those of other programs."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
