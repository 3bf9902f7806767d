"""A captured training step, run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmseg_eomt.engine.watch.capture import model_of, read_capture, step_of
from mmseg_eomt.engine.watch.first_nonfinite import Finding
from mmseg_eomt.engine.watch.traced_step import trace_step


@dataclass(frozen=True)
class Replay:
    """What a captured step gave, then and now.

    Attributes:
        step (int): Its number, from 1 as in the log.
        rank (int): Process that it was captured on.
        files (list[str]): Images that the finding is about.
        recorded (Finding | None): The first value that was not finite in training.
        found (Finding | None): The first one now.
    """

    step: int
    rank: int
    files: list[str]
    recorded: Finding | None
    found: Finding | None

    @property
    def same(self) -> bool:
        """Whether both are in the same pass of the same module."""
        then, now = self.recorded, self.found
        if then is None or now is None:
            return then is now
        return (then.phase, then.module) == (now.phase, now.module)


def replay_capture(
    path: str | Path,
    *,
    config: str | Path | None = None,
    model: nn.Module | None = None,
    device: str | None = None,
) -> Replay:
    """Run a captured step again, with its weights, images and random numbers.

    Args:
        path: `nonfinite/step_N_rankR.pth` of a run's folder. Nothing in it is executed.
        config: Config of the run, for its `custom_imports`. Defaults to None.
        model: The model, if it was no config; it gets the weights of the capture.
        device: Where to run. Defaults to None: CUDA if there is a device, else the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no capture, or its model cannot be built.
    """
    capture = read_capture(path)
    if config is not None:
        Config.fromfile(config)  # imports what the config does
    init_default_scope("mmseg")
    if model is None:
        segmentor: Any = model_of(capture, source=path)
    else:
        segmentor = model
        segmentor.load_state_dict(capture["state_dict"])
    segmentor = segmentor.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if hasattr(segmentor.decode_head, "set_place"):
        segmentor.decode_head.set_place(int(capture["rank"]), int(capture["world_size"]))
    totals = capture.get("totals")
    found = trace_step(
        segmentor,
        step_of(capture),
        precision=str(capture["precision"]),
        loss_scale=float(capture["loss_scale"]),
        totals=None if totals is None else totals.to(next(segmentor.parameters()).device),
    )
    recorded = capture["finding"]
    return Replay(
        step=int(capture["step"]) + 1,
        rank=int(capture["rank"]),
        files=[str(name) for name in capture.get("files", [])],
        recorded=None if recorded is None else Finding.from_dict(recorded),
        found=found,
    )
