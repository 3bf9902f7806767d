"""Registers every component. Importing this module does it, and takes PyTorch and mmseg with it.

`mmseg_eomt` says when that happens. Each sub-package that needs PyTorch imports this module before
anything else.
"""

from __future__ import annotations

from mmseg_eomt import compat

# Before anything imports mmseg.
compat.apply()

from mmseg_eomt import apis, datasets, engine, evaluation, models  # noqa: E402, F401
