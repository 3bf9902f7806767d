"""Counts the files of the package that a small run passes through, by tracing its calls.

    python -m tests.architecture.crossings

One process, two steps and a validation of `tiny_quickstart`, with loop, hooks and a checkpoint. A
crossing is a pair of files of which one calls the other.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import mmseg_eomt
from tests.golden import golden_config

PACKAGE = str(Path(mmseg_eomt.__file__).parent) + "/"
OPTIONS = ["train_cfg.max_iters=2", "train_cfg.val_interval=2"]


class Crossings:
    """Files of the package that are entered, and who calls whom, while it traces."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.functions: set[tuple[str, str]] = set()
        self.edges: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """Traces the calls of this thread."""
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        called_by = frame.f_back.f_code.co_filename if frame.f_back else ""
        if frame.f_code.co_name == "<module>" or called_by.startswith("<frozen importlib"):
            return  # an import, not a call
        file = frame.f_code.co_filename
        self.files.add(file.removeprefix(PACKAGE))
        self.functions.add((file.removeprefix(PACKAGE), frame.f_code.co_name))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != file:
            self.edges.add((caller.f_code.co_filename.removeprefix(PACKAGE), file[len(PACKAGE) :]))


def run(folder: Path, *options: str, workers: int = 0, around_loop: Callable[[], Any]) -> None:
    """Trains two steps; the train loop runs inside ``around_loop()``."""
    from mmseg_eomt.commands.train import main
    from mmseg_eomt.engine.train_loop import AccumulationTrainLoop

    config, data = golden_config(folder)
    loop_run = AccumulationTrainLoop.run

    def traced(loop: AccumulationTrainLoop) -> Any:
        with around_loop():
            return loop_run(loop)

    AccumulationTrainLoop.run = traced  # type: ignore[method-assign]
    try:
        arguments = [str(config), "--data", str(data), "--work-dir", str(folder / "run")]
        loader = f"train_dataloader.num_workers={workers}"
        code = main([*arguments, *options, "--cfg-options", *OPTIONS, loader])
    finally:
        AccumulationTrainLoop.run = loop_run  # type: ignore[method-assign]
    assert not code


def count() -> tuple[Crossings, Crossings]:
    """Crossings of a loop without validation, and of a whole run with one."""
    step, whole = Crossings(), Crossings()
    with tempfile.TemporaryDirectory() as folder:
        # Samples are made by a worker: what remains is the step.
        run(Path(folder) / "step", "--no-validate", workers=1, around_loop=step.trace)
        with whole.trace():
            run(Path(folder) / "whole", around_loop=contextlib.nullcontext)
    return step, whole


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        step, whole = count()
    print(f"a training step with loop, hooks and checkpoint: {len(step.files)} files")
    print(f"two steps with a validation: {len(whole.files)} files, {len(whole.edges)} crossings")
    if "-v" in sys.argv:
        print("\n".join(sorted(step.files)))
        print("\n".join(sorted(f"{a} -> {b}" for a, b in whole.edges)))
