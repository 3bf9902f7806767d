"""What this package registers with MMDeploy; deploy configs name it in ``codebase_config.module``.

Importing it puts the entries of the modules below into MMDeploy's registries, through its public
interface alone. MMDeploy itself is optional: this is the only part of the package that needs it.
"""

from __future__ import annotations

import mmseg_eomt.registration  # noqa: F401
from mmseg_eomt.compat import require_mmdeploy

# Before anything imports mmdeploy.
require_mmdeploy()

from mmseg_eomt.deploy.mmdeploy import (  # noqa: E402
    backend_segmentor,
    backends,
    rewriters,
    task,
)

__all__ = ["backend_segmentor", "backends", "rewriters", "task"]
