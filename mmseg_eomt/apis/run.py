"""Runs a resolved config: work folder, log file, resume, training, testing."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import HOOKS, RUNNERS, VISUALIZERS

from mmseg_eomt.apis.processes import explaining_lost_processes, naming_files, restarts
from mmseg_eomt.apis.resolve import (
    ResolvedRun,
    check_data,
    check_same_classes,
    explaining_data,
    resolve_config,
)
from mmseg_eomt.checkpoints.describe import test_size_of
from mmseg_eomt.checkpoints.run_folder import (
    checkpoints_of,
    newest_intact,
    read_resumable,
    remove_checkpoint,
)
from mmseg_eomt.checkpoints.torch_file import read_training_checkpoint
from mmseg_eomt.checkpoints.weights_file import (
    is_safetensors,
    load_state,
    read_header,
    read_weights,
)
from mmseg_eomt.engine.hooks.checkpoint import ExportWeightsHook
from mmseg_eomt.engine.hooks.start_from import check_checkpoint, set_checkpoint
from mmseg_eomt.header import HEADER_KEY, ModelHeader

LOG_FILE = "train.log"
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
# A run folder's own files: what `overwrite` removes. Anything else there is left alone.
OWN_FILES = (
    "last_checkpoint",
    LOG_FILE,
    "iter_*.pth",
    "iter_*.pth.set_aside*",
    "iter_*.sharded",
    "iter_*.sharded.set_aside*",
    "best_*.pth",
    "best_*.sharded",
    "exported/best.safetensors",
    "exported/last.safetensors",
    "profile/steps_*",
    # Of pretraining.
    "exported/backbone.safetensors",
    "exported/backbone_meta.pth",
    "pictures/patches_*.png",
)


def prepare_training(
    cfg: Config,
    *,
    data: Any = None,
    checkpoint: str | Path | None = None,
    reuse_class_head: bool | str = False,
    resume: bool | str | Path = False,
    world_size: int = 1,
    validate: bool = True,
) -> ResolvedRun:
    """Resolve a config for training; the same for tools/train.py and the Python call.

    Args:
        cfg: The config; `cfg.work_dir` is set.
        data: One's own folders, see `resolve_config`.
        checkpoint: Weights of another task to start from, see `start_from`.
        reuse_class_head: False, True or 'by_name'.
        resume: True continues from the newest intact checkpoint of the work folder if there is
            one; a path continues from that checkpoint.
        world_size: Number of processes.
        validate: Whether to validate during training.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If something contradicts something else.
    """
    if checkpoint is not None and resume:
        raise ValueError(
            "resume continues a run with its own weights, checkpoint starts a new run from other "
            "weights: give one of them."
        )
    # Before the dataset is read, which may take long.
    check_checkpoint(cfg, checkpoint, reuse_class_head)
    splits = ("train", "val") if validate else ("train",)
    if not validate:
        cfg = cfg.copy()
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    # The test data stay in the config unchecked: the dump in the run folder serves tools/test.py
    # and MMSegInferencer, and a runner builds them only to test.
    with explaining_data(cfg, splits, data=data):
        run = resolve_config(cfg, data=data, world_size=world_size, splits=splits)
    cfg = run.cfg
    check_data(cfg, splits)
    if not validate:
        # Without a score there is no best checkpoint to keep.
        cfg.default_hooks.checkpoint.pop("save_best", None)
    add_hook(cfg, ExportWeightsHook.__name__)
    if checkpoint is not None:
        set_checkpoint(
            cfg,
            checkpoint,
            reuse_class_head=reuse_class_head,
            classes=list(run.dataset_meta["classes"]),
        )
    cfg.resume, cfg.load_from = False, cfg.get("load_from")
    if resume:
        path = Path(resume) if not isinstance(resume, bool) else newest_intact(cfg.work_dir)
        if path is not None:
            stored = read_resumable(path)
            if HEADER_KEY in stored:
                header = ModelHeader.from_json(str(stored[HEADER_KEY]), source=str(path))
                check_same_classes(path, run.dataset_meta, header=header)
            cfg.resume, cfg.load_from = True, str(path.resolve())
            # The checkpoint brings the backbone: nothing else has to be fetched.
            cfg.model.backbone.pretrained = None
    return run


def run_training(cfg: Config) -> Runner:
    """Train a resolved config, with a log in `work_dir/train.log`.

    Returns:
        The runner after the last step.
    """
    runner = build_runner(cfg)
    handler = _log_to_file(runner)
    try:
        with explaining_lost_processes(runner), naming_files(runner):
            runner.train()
    except BaseException:
        # The traceback belongs into the log, whatever a tool then shows to the user.
        runner.logger.debug("Training ended early:", exc_info=True)
        if handler is not None:
            handler.flush()
        raise
    finally:
        if handler is not None:
            runner.logger.removeHandler(handler)
            handler.close()
    return runner


def run_test(
    cfg: Config, checkpoint: str | Path, *, data: Any = None, tta: bool = False
) -> dict[str, float]:
    """Test weights on the test set of a config.

    Args:
        cfg: The config; `cfg.work_dir` is set.
        checkpoint: Lean weights, or a training checkpoint of MMSegmentation.
        data: One's own folders, see `resolve_config`.
        tta: Average over scales and flips (`cfg.tta_pipeline`).

    Returns:
        The metrics.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If the weights do not fit config or dataset.
    """
    state = read_state(checkpoint)
    run = resolve_config(cfg, data=data, splits=("test",))
    cfg = run.cfg
    if _has_header(checkpoint):
        check_same_classes(checkpoint, run.dataset_meta)
        warning = other_test_size(read_header(checkpoint), cfg)
        if warning:
            print_log(f"{checkpoint}: {warning}", logger="current", level=logging.WARNING)
    for name in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg[name] = None
    for name in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[name] = None
    # Hooks that belong to training; the weights of a checkpoint are the averaged ones already.
    cfg.custom_hooks = [h for h in cfg.get("custom_hooks") or () if not _only_for_training(h)]
    cfg.model.backbone.pretrained = None
    cfg.load_from, cfg.resume = None, False
    if tta:
        _use_test_time_augmentation(cfg)
    runner = build_runner(cfg)
    load_state(runner.model, state, source=checkpoint)
    with naming_files(runner):
        metrics: dict[str, float] = runner.test()
    return metrics


def other_test_size(header: ModelHeader, cfg: Mapping[str, Any]) -> str | None:
    """Say so if a config tests at another size than the weights were validated at, else None."""
    own, wanted = header.test_size, test_size_of(cfg)
    if own == wanted:
        return None
    return (
        f"these weights were validated with images resized to {own} (height, width), this config "
        f"resizes to {wanted}: mIoU will differ. The config in the run's folder has its sizes."
    )


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names."""
    visualizer = cfg.get("visualizer")
    if visualizer and visualizer.get("name"):
        # MMEngine keeps visualizers by name: a second run in one process would get the first's.
        kind, name = VISUALIZERS.get(visualizer["type"]), visualizer["name"]
        numbers = itertools.count(2)
        while kind.check_instance_created(visualizer["name"]):
            visualizer["name"] = f"{name}-{next(numbers)}"
    if cfg.get("runner_type"):
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a file with or without a header."""
    path = Path(path)
    if path.is_file() and not is_safetensors(path):
        state: dict[str, torch.Tensor] = read_training_checkpoint(path)["state_dict"]
        return state
    return read_weights(path)[1]


def default_work_dir(config: str | Path) -> Path:
    """The folder of a config's run: its own if it lies in a run's folder, else `work_dirs/STEM`.

    A run leaves its config behind without a path, so that a copied folder is resumed as the copy.
    """
    config = Path(config)
    return config.parent if checkpoints_of(config.parent) else Path("work_dirs") / config.stem


def prepare_folder(out: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Make the folder of a new run, without ever overwriting one in silence.

    Raises:
        FileExistsError: If it is not empty, without `overwrite` or `resume`.
        FileNotFoundError: If there is nothing to resume.
        NotADirectoryError: If it is a file.
        ValueError: If both `overwrite` and `resume` are given.
    """
    out = Path(out)
    if overwrite and resume:
        raise ValueError("overwrite starts anew and resume continues: give one of them.")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: out must be a folder, but it is a file.")
    if resume and not checkpoints_of(out):
        raise FileNotFoundError(
            f"{out}: no checkpoint (iter_*.pth or iter_*.sharded) to resume from. Give the folder "
            "of the interrupted run, or resume=False."
        )
    if out.is_dir() and any(out.iterdir()) and not resume:
        if not overwrite:
            raise FileExistsError(
                f"{out}: the folder is not empty. Take another one, or resume=True to continue the "
                "run in it, or overwrite=True to replace it."
            )
        for pattern in OWN_FILES:
            for path in out.glob(pattern):
                remove_checkpoint(path)
    out.mkdir(parents=True, exist_ok=True)
    return out


def add_hook(cfg: Config, hook_type: str) -> None:
    """Add a hook by type unless the config has it already."""
    hooks = list(cfg.get("custom_hooks") or ())
    present = [*hooks, *(hook for hook in (cfg.get("default_hooks") or {}).values() if hook)]
    if not any(hook["type"] == hook_type for hook in present):
        cfg.custom_hooks = [*hooks, {"type": hook_type}]


def world_size_of(launcher: str) -> int:
    """Number of processes that a launcher started, from its environment."""
    names = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
    return int(os.environ.get(names.get(launcher, ""), "1"))


def _has_header(path: str | Path) -> bool:
    return is_safetensors(path) or HEADER_KEY in read_training_checkpoint(path)


def _only_for_training(hook: Any) -> bool:
    hook_class = HOOKS.get(hook["type"]) if isinstance(hook["type"], str) else hook["type"]
    name = getattr(hook_class, "__name__", "")
    return name in (ExportWeightsHook.__name__, "StartFromHook") or (
        isinstance(hook_class, type) and issubclass(hook_class, EMAHook)
    )


def _use_test_time_augmentation(cfg: Config) -> None:
    if not cfg.get("tta_pipeline") or not cfg.get("tta_model"):
        raise ValueError("--tta needs tta_pipeline and tta_model in the config.")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def _log_to_file(runner: Runner) -> logging.Handler | None:
    """Log everything of the main process to one file of a fixed name; a continued run appends."""
    if not is_main_process():
        return None
    path = Path(runner.work_dir) / LOG_FILE
    # A restart before the first checkpoint must not wipe out what the first start tells.
    mode = "a" if runner._resume or restarts() > 0 else "w"
    handler = logging.FileHandler(path, mode=mode, encoding="utf-8")
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    runner.logger.addHandler(handler)
    return handler
