"""Several processes of a gloo group that need no seconds to start: forks of one that has imported.

run_ranks(4, "tests.engine.sharding_tasks:train", options)
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.engine.sharding_tasks", "tests.kill_trainer"])
LIMIT = 300.0


def run_ranks(world: int, task: str, *arguments: Any, log: Path, limit: float = LIMIT) -> None:
    """Runs ``task(*arguments)`` as ranks 0 to ``world - 1`` of one group, as torchrun would.

    Args:
        world: Number of processes; all must end well.
        task: ``module:function``.
        arguments: Of the function; they are pickled.
        log: Folder for what the processes print.
        limit: Seconds.
    """
    ranks = start_ranks(world, task, *arguments, log=log)
    end = time.monotonic() + limit
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
        if any(rank.exitcode for rank in ranks):
            break  # the others would wait for the one that failed
        time.sleep(0.02)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
        rank.join()
    texts = [(log / f"rank{rank}.txt").read_text()[-3000:] for rank in range(world)]
    assert codes == [0] * world, f"{codes}\n" + "\n---\n".join(texts)


def start_ranks(world: int, task: str, *arguments: Any, log: Path) -> list[Any]:
    """Starts what :func:`run_ranks` waits for."""
    log.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks = []
    for rank in range(world):
        process = FORKS.Process(target=_rank, args=(rank, world, port, str(log), task, arguments))
        process.start()
        ranks.append(process)
    return ranks


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(
    rank: int, world: int, port: int, log: str, task: str, arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    module, _, function = task.partition(":")
    with open(Path(log) / f"rank{rank}.txt", "w", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            getattr(importlib.import_module(module), function)(*arguments)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        except BaseException as error:
            traceback.print_exc()
            # Without a farewell to the group, as from a crash.
            os._exit(0 if isinstance(error, SystemExit) and not error.code else 1)
