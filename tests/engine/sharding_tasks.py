"""What the processes of the tests do: real runs of a tiny EoMT, as tools/train.py makes them."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

import mmseg_eomt  # noqa: F401
import tests.plain_configs  # noqa: F401
from mmseg_eomt.apis.run import build_runner, run_training
from mmseg_eomt.apis.train import resolve_training
from mmseg_eomt.checkpoints.sharded import local_part
from mmseg_eomt.engine.watch.cost import memory_of_process
from tests.apis.tiny import tiny_call

ARCH = {"embed_dims": 32, "depth": 4, "num_heads": 2, "patch_size": 8}
NAMES = itertools.count()


@HOOKS.register_module()
class EndBefore(Hook):  # type: ignore[misc]
    """Ends a process before a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.step:
            raise SystemExit(0)


@HOOKS.register_module()
class WriteAtOnce(Hook):  # type: ignore[misc]
    """Writes what a run has after its resume, and ends it."""

    priority = "LOWEST"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_train(self, runner: Any) -> None:
        step = runner.iter
        name = f"iter_{step}{runner.checkpoint_suffix}"
        runner.save_checkpoint(self.folder, name, meta={"epoch": 0, "iter": step}, by_epoch=False)
        raise SystemExit(0)


class RecordExchanges(Hook):  # type: ignore[misc]
    """Counts what processes send each other in every step."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.__enter__()

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.profile.__exit__(None, None, None)
        names = [event.name for event in self.profile.events() or ()]
        self.counts.append(sum(name.startswith("c10d::") for name in names))


def config(
    out: Path | str,
    data: Any,
    *,
    world: int = 1,
    steps: int = 20,
    strategy: str | None = None,
    micro: int | None = None,
    every: int = 100,
    hooks: Any = (),
    resume_from: str | None = None,
    model_args: dict[str, Any] | None = None,
    compiled: bool = False,
    **options: Any,
) -> Any:
    """A resolved config of the tiny run, four images a step."""
    args = {
        "arch": dict(ARCH),
        "backbone_weights": None,
        "num_queries": 4,
        "num_joint_blocks": 2,
        "num_points": 32,
        "lr": 1e-3,
        **(model_args or {}),
    }
    options = {"precision": "fp32", "num_workers": 0, **options}
    call = tiny_call(
        data,
        steps=steps,
        batch_size=4,
        micro_batch_size=micro or max(1, 4 // world),
        model_args=args,
        logger_args={"tensorboard": None},
        save_checkpoint_args={"interval": every, "save_best": None, "max_keep_ckpts": 2},
    )
    cfg = resolve_training(**{**call, **options}, out=str(out), world_size=world).cfg
    # Names of experiments are kept by mmengine for the life of a process.
    cfg.experiment_name = f"{Path(out).name}-{next(NAMES)}"
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.pop("visualization", None)
    cfg.train_cfg.val_interval = steps
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    if resume_from is not None:
        cfg.resume, cfg.load_from = True, resume_from
    if strategy:
        cfg.strategy = {"type": strategy}
    if compiled:
        cfg.compile = True
    return cfg


def train(out: str, data: Any, world: int, options: dict[str, Any]) -> Runner:
    """One process of a run."""
    return run_training(config(out, data, world=world, **options))


def count_exchanges(out: str, data: Any, world: int, options: dict[str, Any]) -> None:
    """One process of a DDP run; writes how often it exchanged something in each step."""
    counts: list[int] = []
    cfg = config(out, data, world=world, **options)
    runner = build_runner(cfg)
    assert runner.model.find_unused_parameters is False
    runner.register_hook(RecordExchanges(counts))
    runner.train()
    Path(out, f"exchanges{torch.distributed.get_rank()}.txt").write_text(" ".join(map(str, counts)))


def measure_memory(out: str, data: Any, world: int, options: dict[str, Any]) -> None:
    """Builds a model and loads its backbone; writes by how many bytes the process grew at most."""
    tiny = {**options, "model_args": None}  # so that all is imported and connected before
    build_runner(config(f"{out}/tiny", data, world=world, **tiny))._init_model_weights()
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    runner = build_runner(config(out, data, world=world, **options))
    runner._init_model_weights()
    peak = _status("VmHWM") - before
    own = sum(local_part(p).numel() * p.element_size() for p in runner.model.parameters())
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    Path(out, f"memory{rank}.txt").write_text(f"{peak} {own}")


def measure_storage(out: str, data: Any, world: int, options: dict[str, Any]) -> None:
    """Trains one step; writes what a process holds between steps, and what was calculated."""
    kept: dict[str, int] = {}

    class AtTheEndOfTheStep(Hook):  # type: ignore[misc]
        def before_train(self, runner: Any) -> None:
            averaged = next(h for h in runner.hooks if hasattr(h, "ema_model")).ema_model

            def look(optimizer: Any, *_: Any) -> None:
                trained = list(runner.model.parameters())
                moments = [
                    value
                    for state in optimizer.state.values()
                    for key, value in state.items()
                    if key.startswith("exp_avg")
                ]
                grads = [p.grad for p in trained if p.grad is not None]
                held = [*trained, *grads, *moments, *averaged.module.parameters()]
                kept["shards"] = sum(local_part(t).numel() * t.element_size() for t in held)

            runner.optim_wrapper.optimizer.register_step_post_hook(look)

    runner = build_runner(config(out, data, world=world, **options))
    runner.register_hook(AtTheEndOfTheStep())
    runner.train()
    memory = memory_of_process(runner.model, world_size=world, precision="fp32", ema=True)
    kept["calculated"] = memory.shards
    rank = torch.distributed.get_rank()
    Path(out, f"storage{rank}.json").write_text(json.dumps(kept))


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
