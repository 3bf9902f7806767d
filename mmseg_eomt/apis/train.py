"""Training from Python: one call, and the run of the config of the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmseg_eomt.apis import options
from mmseg_eomt.apis.options import apply_ema, apply_profile, load_model_config
from mmseg_eomt.apis.processes import launch_training
from mmseg_eomt.apis.resolve import ResolvedRun
from mmseg_eomt.apis.run import prepare_folder, prepare_training, run_training
from mmseg_eomt.datasets.data_description import load_data


def train_semantic_segmentation(
    *,
    out: str | Path,
    data: Mapping[str, Any] | str | Path,
    model: str = "dinov3/vits16-eomt",
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    num_workers: int | None = None,
    devices: int | str = "auto",
    precision: str | None = None,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    reuse_class_head: bool | str = False,
    ema: bool | float | None = None,
    profile: Sequence[int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    transform_args: Mapping[str, Any] | None = None,
    logger_args: Mapping[str, Any] | None = None,
    save_checkpoint_args: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train EoMT on one's own images and masks.

    None stands for the value of the model's config, `configs/eomt/*_folder.py`; the call and
    `tools/train.py` with that config make the same run.

    Args:
        out: Folder of the run: checkpoints, `exported/best.safetensors` and
            `exported/last.safetensors`, TensorBoard events, pictures, `train.log`.
        data: Folders and classes, a dict or the path of a YAML or JSON file, see
            `mmseg_eomt.datasets.data_description`.
        model: One of `mmseg_eomt.apis.MODEL_NAMES`.
        steps: Optimiser steps.
        batch_size: Images per optimiser step, over all devices.
        micro_batch_size: The most images that one device takes at once; the rest is accumulated.
        num_workers: Loader processes per device.
        devices: Number of GPUs (without CUDA: of processes), or 'auto' for all GPUs.
        precision: 'auto', 'fp32', 'bf16' or 'fp16'.
        seed: Of weights, order and augmentation.
        checkpoint: Weights of another task to start from, see `start_from`.
        reuse_class_head: Class head of `checkpoint`: False starts it anew, True takes it over and
            needs the same classes, 'by_name' takes the rows of classes of the same name.
        ema: True validates and exports averaged weights, see `options.apply_ema`; a number is
            the share with which a new step counts.
        profile: (STEP, COUNT) writes a profile of so many steps from STEP on into the folder
            `profile` of the run, see `ProfileHook`.
        model_args: Of model, loss and optimiser, see `options.MODEL_ARGS`.
        transform_args: `image_size` (int or (height, width)), `normalize` (dict(mean, std) for
            values from 0 to 1), `color_jitter`, `scale_jitter`, `random_flip` (None switches one
            off), `val` (dict(image_size)).
        logger_args: `tensorboard`, `mlflow`, `wandb`: a dict switches one on, None off.
        save_checkpoint_args: `interval` (steps), `max_keep_ckpts`, `save_best`, `rule`.
        resume: Continue the interrupted run in `out`.
        overwrite: Replace an earlier run in `out`.

    Returns:
        The folder of the run.

    Raises:
        FileExistsError: If `out` is not empty, without `resume` or `overwrite`.
        FileNotFoundError: If a folder or file is missing.
        ValueError: If an argument is wrong; the message says what is allowed.
    """
    settings: dict[str, Any] = {
        "data": load_data(data).as_dict(),
        "model": model,
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "num_workers": num_workers,
        "precision": precision,
        "seed": seed,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "reuse_class_head": reuse_class_head,
        "ema": ema,
        "profile": profile,
        "model_args": model_args,
        "transform_args": transform_args,
        "logger_args": logger_args,
        "save_checkpoint_args": save_checkpoint_args,
        "resume": resume,
    }
    world_size = count_devices(devices)
    # Everything is resolved before the folder is touched: a wrong argument costs nothing.
    cfg = resolve_training(out=out, world_size=world_size, **settings).cfg
    return start_run(cfg, settings, world_size=world_size, overwrite=overwrite, module=__name__)


def resolve_training(
    *, out: str | Path, model: str, data: Any, world_size: int = 1, **settings: Any
) -> ResolvedRun:
    """Return the run that `train_semantic_segmentation` makes of its arguments."""
    cfg: Config = load_model_config(model)
    options.apply_model_args(cfg, settings.get("model_args"))
    options.apply_transform_args(cfg, settings.get("transform_args"))
    apply_run_settings(cfg, settings, out=out, world_size=world_size)
    apply_ema(cfg, settings.get("ema"))
    apply_profile(cfg, settings.get("profile"))
    return prepare_training(
        cfg,
        data=data,
        checkpoint=settings.get("checkpoint"),
        reuse_class_head=settings.get("reuse_class_head", False),
        resume=settings.get("resume", False),
        world_size=world_size,
    )


def apply_run_settings(
    cfg: Config, settings: Mapping[str, Any], *, out: str | Path, world_size: int
) -> None:
    """Change a config by the arguments that training and pretraining share.

    Raises:
        ValueError: If one is wrong; the message says what is allowed.
    """
    cfg.work_dir = str(out)
    cfg.launcher = "none" if world_size == 1 else "pytorch"
    options.apply_logger_args(cfg, settings.get("logger_args"))
    options.apply_checkpoint_args(cfg, settings.get("save_checkpoint_args"))
    options.apply_steps(cfg, settings.get("steps"))
    options.apply_batch_size(
        cfg,
        settings.get("batch_size"),
        micro_batch_size=settings.get("micro_batch_size"),
        world_size=world_size,
    )
    options.apply_num_workers(cfg, settings.get("num_workers"))
    options.apply_precision(cfg, settings.get("precision"))
    if settings.get("seed") is not None:
        cfg.randomness.seed = settings["seed"]


def start_run(
    cfg: Config, settings: Mapping[str, Any], *, world_size: int, overwrite: bool, module: str
) -> Path:
    """Make the folder of a resolved run and train, in this process or in several.

    Args:
        cfg: The resolved run of one process.
        settings: What `train_process` of ``module`` resolves again in each of several.
        world_size: Number of processes.
        overwrite: Replace an earlier run in the folder.
        module: Where `train_process` is.

    Returns:
        The folder of the run.

    Raises:
        FileExistsError: If the folder is not empty, without `resume` or `overwrite`.
    """
    out = prepare_folder(cfg.work_dir, overwrite=overwrite, resume=settings["resume"])
    if world_size > 1:
        launch_training({"out": str(out), **settings}, world_size=world_size, module=module)
    else:
        run_training(cfg)
    return out


def train_process(**settings: Any) -> None:
    """Train as one of several processes; `settings` are those of `resolve_training`."""
    run_training(resolve_training(**settings).cfg)


def count_devices(devices: int | str) -> int:
    """Return the number of processes to train with.

    Raises:
        ValueError: If it is neither 'auto' nor a number of devices that exist.
    """
    available = torch.cuda.device_count()
    if devices == "auto":
        return max(1, available)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices is {devices!r}: give 'auto' or a positive number of devices.")
    if available and devices > available:
        raise ValueError(f"devices is {devices}, but there are {available} GPUs here.")
    return devices
