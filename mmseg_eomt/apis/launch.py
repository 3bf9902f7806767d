"""Several training processes from one Python call.

They are started by `torch.distributed.run` with this module, not by forking or spawning the
caller: so the call also works in a notebook and in a script without a `__main__` guard.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def launch_training(
    settings: Mapping[str, Any], *, world_size: int, module: str = "mmseg_eomt.apis.train"
) -> None:
    """Train with `world_size` processes on this machine and wait for them.

    Args:
        settings: Arguments of the module's `train_process`.
        world_size: Number of processes.
        module: Where that function is.

    Raises:
        RuntimeError: If a process fails; its own message is on stderr and in train.log.
    """
    with tempfile.TemporaryDirectory(prefix="mmseg_eomt_") as folder:
        # YAML and not pickle: plain data, and integer keys stay integers.
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(_plain(settings)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={world_size}", "-m", __name__, str(path), module),
        ]
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        raise RuntimeError(
            f"training with {world_size} processes failed (exit code {code}); the message of the "
            f"process that failed first is above and in {settings['out']}/train.log."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _worker(path: str, module: str) -> None:
    """Train as one of the processes."""
    from mmseg_eomt.engine.process_group import end_with_launcher

    end_with_launcher()
    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    train = importlib.import_module(module).train_process
    train(world_size=int(os.environ["WORLD_SIZE"]), **settings)


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2])
