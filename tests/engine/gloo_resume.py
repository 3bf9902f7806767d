"""One of two processes: a whole run, one that crashes, and its resume, in the same folder each."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import distributed

from tests.engine.engine_toys import ToySegmentor
from tests.engine.exact import Crash, DroppingSegmentor, exact_runner

EMA = {"type": "EMAHook", "momentum": 0.1}


class OwnNumbers(Hook):  # type: ignore[misc]
    """Lets each process of a new run draw numbers of its own."""

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            torch.manual_seed(100 + get_rank())


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    options: dict[str, Any] = {"steps": 8, "batch_size": 1, "launcher": "pytorch", "interval": 5}

    def run(name: str, **more: Any) -> None:
        model = ToySegmentor() if name == "handed" else DroppingSegmentor()
        name_of_run = f"{name}{len(more)}"
        exact_runner(
            folder / name,
            hooks=[EMA, OwnNumbers()],
            model=model,
            experiment_name=name_of_run,
            **options,
            **more,
        ).train()

    run("whole")
    for name in ("parts", "handed"):
        with contextlib.suppress(Crash):
            run(name, crash=4)
        distributed.barrier()
    run("parts", resume=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
