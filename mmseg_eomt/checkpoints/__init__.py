"""Files of weights: our own, and one module for each foreign layout."""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401  (comes first)
