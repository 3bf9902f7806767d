"""One of two processes: plants faults in runs of a tiny model and writes what came of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import Tensor, distributed

from mmseg_eomt.apis.run import build_runner
from mmseg_eomt.apis.train import resolve_training
from mmseg_eomt.checkpoints.describe import unwrap
from tests.apis.tiny import FEW_FILES, tiny_call

WEIGHT = "backbone.vit.blocks.1.mlp.fc1.weight"
STEP = 2  # from 0


class Plant(Hook):  # type: ignore[misc]
    """Calls a function before a step, and notes weights and optimiser as they then are."""

    def __init__(self, act: Callable[[Any, Any], None], *, step: int = STEP) -> None:
        self.act, self.step = act, step
        self.before: list[Tensor] = []

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        prepare = loop.prepare_step

        def planted(model: Any, batches: list[dict[str, Any]]) -> None:
            if runner.iter == self.step:
                self.act(runner, batches)
                self.before = state(runner)
            prepare(model, batches)

        loop.prepare_step = planted


def state(runner: Any) -> list[Tensor]:
    """Copies of all weights and all of the optimiser's tensors."""
    values = list(runner.model.state_dict().values())
    for item in runner.optim_wrapper.optimizer.state.values():
        values += [value for value in item.values() if isinstance(value, Tensor)]
    return [value.clone() for value in values]


def nan_image(runner: Any, batches: list[dict[str, Any]]) -> None:
    """In the last micro-batch of one process."""
    if get_rank() == 1:
        images = batches[-1]["inputs"]
        images[-1] = images[-1].float()
        images[-1][1, 2, 3] = float("nan")


def nan_weight(runner: Any, batches: list[dict[str, Any]]) -> None:
    parameter = dict(unwrap(runner.model).named_parameters())[WEIGHT]
    with torch.no_grad():
        parameter.view(-1)[7] = float("nan")


def huge_weight(runner: Any, batches: list[dict[str, Any]]) -> None:
    """Finite, but not its product with what comes in."""
    parameter = dict(unwrap(runner.model).named_parameters())[WEIGHT]
    with torch.no_grad():
        parameter.fill_(3e38)


def other_weight(runner: Any, batches: list[dict[str, Any]]) -> None:
    if get_rank() == 1:
        nudge = dict(unwrap(runner.model).named_parameters())[WEIGHT]
        with torch.no_grad():
            nudge.view(-1)[3] += 1e-7


FAULTS: dict[str, tuple[Callable[[Any, Any], None], dict[str, Any]]] = {
    "nan_image": (nan_image, {}),
    "nan_weight": (nan_weight, {}),
    "huge_weight": (huge_weight, {}),
    "off": (nan_image, {"stop_on_nonfinite": False}),
    "hash": (other_weight, {}),
}


def main(folder: Path) -> None:
    data = yaml.safe_load((folder / "data.yaml").read_text())
    for name, (act, optim) in FAULTS.items():
        call = tiny_call(data, **FEW_FILES, batch_size=4, steps=5)
        run = resolve_training(world_size=2, out=folder / name, **call)
        run.cfg.optim_wrapper.update(optim)
        run.cfg.val_cfg = run.cfg.val_dataloader = run.cfg.val_evaluator = None
        run.cfg.default_hooks.weight_hash.interval = 1 if name == "hash" else 0
        # One micro-batch for one fault, two for the others.
        run.cfg.train_dataloader.batch_size = 2 if name == "nan_weight" else 1
        run.cfg.experiment_name = name
        runner = build_runner(run.cfg)
        plant = Plant(act)
        runner.register_hook(plant)
        result: dict[str, Any] = {"error": None}
        try:
            runner.train()
        except (FloatingPointError, RuntimeError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        result["iter"] = runner.iter
        same = [torch.equal(a, b) for a, b in zip(plant.before, state(runner), strict=True)]
        # A planted NaN is not equal to itself.
        result["moved"] = len(same) - sum(same)
        (folder / f"{name}_{get_rank()}.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
