"""The training process of the kill test: a tiny run that always continues from what it finds."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import torch

from tests.engine.exact import DroppingSegmentor, exact_runner

STEPS = 12
BALLAST = 1 << 18  # numbers; a checkpoint then takes long enough to be hit while it is written


class HeavySegmentor(DroppingSegmentor):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.rand(BALLAST))


def train_to_the_end(folder: str) -> None:
    """Trains the run in ``folder``: from its newest intact checkpoint, or anew."""
    torch.set_num_threads(1)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with (
        open(path / "output.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        run = exact_runner(
            path,
            steps=STEPS,
            every=2,
            model=HeavySegmentor(),
            hooks=[{"type": "EMAHook", "momentum": 0.1}],
            checkpoint_args={"max_keep_ckpts": 2},
            resume=True,
            experiment_name=f"kill{os.getpid()}",
        )
        began = time.monotonic()
        run.train()
    (path / "seconds.txt").write_text(str(time.monotonic() - began))
