"""What a process says that can no longer reach the others of its run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import get_rank, get_world_size
from torch import distributed


@contextmanager
def explaining_lost_processes(runner: Any) -> Iterator[None]:
    """Turns an error of the process group, seen where the others vanished, into its reason.

    With NCCL a watchdog may end the process first; it names the exchange that timed out.

    Raises:
        ConnectionError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_group(error):
            raise
        timeout = ((runner.cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout")
        waited = "the time that torch waits by default" if timeout is None else f"{timeout} s"
        raise ConnectionError(
            f"Process {get_rank()} of {get_world_size()} cannot go on after step {runner.iter}: "
            f"another process has ended, or did not answer for {waited} "
            "(env_cfg.dist_cfg.timeout). Why, its own output says, or torchrun's report. Continue "
            "with --resume; with MAX_RESTARTS set, tools/dist_train.sh does so by itself. "
            f"({error})"
        ) from error


def _is_of_group(error: RuntimeError) -> bool:
    # gloo has no class of its own; its errors begin with a path of its sources.
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
