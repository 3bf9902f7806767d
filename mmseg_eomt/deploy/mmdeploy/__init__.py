"""What this package registers with MMDeploy; deploy configs name it in ``codebase_config.module``.

Importing it puts the entries of the modules below into MMDeploy's registries, through its public
interface alone. MMDeploy itself is optional: this is the only part of the package that needs it.
"""

from __future__ import annotations

from mmseg_eomt import compat

# Before anything imports mmseg or mmdeploy.
compat.apply()
compat.require_mmdeploy()

from mmseg_eomt.deploy.mmdeploy import (  # noqa: E402
    backend_segmentor,
    backends,
    rewriters,
    task,
)

__all__ = ["backend_segmentor", "backends", "rewriters", "task"]
