"""The gloo group of a run ends before Python does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import atexit
from torch import distributed
# What is registered first runs last.
atexit.register(lambda: print("group left at the end:", distributed.is_initialized()))
from mmseg_eomt.engine.process_group import start_group
start_group("pytorch", {"mp_cfg": {}, "dist_cfg": {"backend": "nccl"}})
print("backend:", distributed.get_backend())
"""


def test_the_group_ends_with_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "backend: gloo" in done.stdout
    assert "group left at the end: False" in done.stdout
