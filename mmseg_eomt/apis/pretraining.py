"""Pretraining a backbone on unlabelled images from Python, by the project of a method."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmseg_eomt.apis import options
from mmseg_eomt.apis.options import nearest
from mmseg_eomt.apis.run import run_training
from mmseg_eomt.apis.train import apply_run_settings, count_devices, start_run
from mmseg_eomt.checkpoints.run_folder import newest_intact, read_resumable
from mmseg_eomt.config_files import project_path
from mmseg_eomt.models.architectures import ARCHITECTURES, resolve_architecture

# Method -> its project, which holds a Python package of the same name.
METHODS = {"dinov2": "dinov2_pretraining"}
RECIPES = ("small", "scratch", "8gpu")
_SCHEDULE = "default_hooks.schedule"
# Argument -> where it lives in the config.
MODEL_ARGS = {
    "arch": "model.backbone.arch",
    "backbone_weights": "model.backbone.pretrained",
    "image_size": "model.backbone.image_size",
    "with_cp": "model.backbone.with_cp",
    "drop_path_rate": "model.drop_path_rate",
    "layer_scale": "model.layer_scale",
}
METHOD_ARGS = {
    "num_prototypes": "model.head.num_prototypes",
    "hidden_channels": "model.head.hidden_channels",
    "bottleneck_channels": "model.head.bottleneck_channels",
    "ibot_head": "model.ibot_head",
    "centring": "model.centring",
    "student_temp": "model.student_temp",
    "dino_weight": "model.dino_weight",
    "ibot_weight": "model.ibot_weight",
    "koleo_weight": "model.koleo_weight",
    "mask_probability": "train_dataloader.collate_fn.mask_probability",
    "mask_ratio": "train_dataloader.collate_fn.mask_ratio",
    "lr": "optim_wrapper.optimizer.lr",
    "layer_decay": "optim_wrapper.paramwise_cfg.layer_decay",
    "patch_embed_lr_mult": "optim_wrapper.paramwise_cfg.patch_embed_lr_mult",
    "gradient_clip": "optim_wrapper.clip_grad.max_norm",
    **{
        name: f"{_SCHEDULE}.{name}"
        for name in (
            *("warmup", "final_lr", "weight_decay", "teacher_temp", "teacher_temp_warmup"),
            *("momentum", "freeze_last_layer", "freeze_backbone"),
        )
    },
}
VIEW_ARGS = (
    *("global_size", "local_size", "num_local", "global_scale", "local_scale", "flip_prob"),
    *("blur_prob", "solarise_prob", "colors"),
)
CHECKPOINT_ARGS = ("interval", "max_keep_ckpts")
PATHS = str | Path | Sequence[str | Path]


def pretrain(
    *,
    out: str | Path,
    data: PATHS,
    model: str = "dinov2/vits14",
    method: str = "dinov2",
    recipe: str = "small",
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    num_workers: int | None = None,
    devices: int | str = "auto",
    precision: str | None = None,
    seed: int | None = None,
    labelled: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    method_args: Mapping[str, Any] | None = None,
    transform_args: Mapping[str, Any] | None = None,
    logger_args: Mapping[str, Any] | None = None,
    save_checkpoint_args: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Pretrain a backbone on images without labels.

    None stands for the value of the recipe, a config of `projects/dinov2_pretraining/configs`; the
    call and that project's `tools/pretrain.py` make the same run.

    Args:
        out: Folder of the run: checkpoints, `exported/backbone.safetensors` (for
            `backbone_weights` of EoMT), `exported/backbone_meta.pth` (Meta's names), TensorBoard
            events, `train.log`.
        data: Folders of images, nested or not, or list files.
        model: A backbone of `mmseg_eomt.models.ARCHITECTURES`, e.g. 'dinov2/vits14' or
            'dinov3/vits16'.
        method: 'dinov2'.
        recipe: 'small' goes on from released weights on a small machine; 'scratch' starts without
            them there; '8gpu' is the published recipe from scratch.
        steps: Optimiser steps; schedules are shares of them.
        batch_size: Images per optimiser step, over all devices; the rate follows its square root.
        micro_batch_size: The most images that one device takes at once; the rest is accumulated.
        num_workers: Loader processes per device.
        devices: Number of GPUs (without CUDA: of processes), or 'auto' for all GPUs.
        precision: 'auto', 'fp32', 'bf16' or 'fp16'.
        seed: Of weights, order, views and masks.
        labelled: Folder with a subfolder of images for each class; k-NN and linear accuracy on it
            are logged. Training does not see it.
        model_args: Of the backbone, see `MODEL_ARGS`; `backbone_weights` is where it starts from,
            None means from scratch.
        method_args: Of losses, heads, schedules and optimiser, see `METHOD_ARGS`.
        transform_args: Of the views, see `VIEW_ARGS`, and `normalize` (dict(mean, std) for values
            from 0 to 1).
        logger_args: `tensorboard`, `mlflow`, `wandb`: a dict switches one on, None off.
        save_checkpoint_args: `interval` (steps), `max_keep_ckpts`.
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
        "data": paths_of(data),
        "model": model,
        "method": method,
        "recipe": recipe,
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "num_workers": num_workers,
        "precision": precision,
        "seed": seed,
        "labelled": None if labelled is None else str(labelled),
        "model_args": model_args,
        "method_args": method_args,
        "transform_args": transform_args,
        "logger_args": logger_args,
        "save_checkpoint_args": save_checkpoint_args,
        "resume": resume,
    }
    world_size = count_devices(devices)
    # Everything is resolved before the folder is touched: a wrong argument costs nothing.
    cfg = resolve_pretraining(out=out, world_size=world_size, **settings)
    return start_run(cfg, settings, world_size=world_size, overwrite=overwrite, module=__name__)


def resolve_pretraining(
    *,
    out: str | Path,
    data: Sequence[str],
    model: str,
    method: str = "dinov2",
    recipe: str = "small",
    world_size: int = 1,
    **settings: Any,
) -> Config:
    """Return the config of the run that `pretrain` makes of its arguments."""
    cfg = load_recipe(model, method=method, recipe=recipe)
    _apply(cfg, "model_args", settings.get("model_args"), MODEL_ARGS)
    sizes = resolve_architecture(model.split("/")[0], cfg.model.backbone.arch)
    cfg.train_dataloader.collate_fn.patch_size = sizes.patch_size
    _apply(cfg, "method_args", settings.get("method_args"), METHOD_ARGS)
    _apply_views(cfg, settings.get("transform_args"))
    checkpoint_args = settings.get("save_checkpoint_args") or {}
    options.refuse_unknown("save_checkpoint_args", checkpoint_args, CHECKPOINT_ARGS)
    apply_run_settings(cfg, settings, out=out, world_size=world_size)
    labelled, resume = settings.get("labelled"), settings.get("resume", False)
    return prepare_pretraining(cfg, data=data, labelled=labelled, resume=resume)


def prepare_pretraining(
    cfg: Config,
    *,
    data: Sequence[str] | None = None,
    labelled: str | Path | None = None,
    resume: bool | str | Path = False,
) -> Config:
    """Set data and resume of a config; the same for the tool and the Python call.

    Args:
        cfg: The config; `cfg.work_dir` is set.
        data: Folders of images, or list files; None takes those of the config.
        labelled: Folder of labelled images to measure on; None takes that of the config.
        resume: True continues from the newest intact checkpoint of the work folder if there is
            one; a path continues from that checkpoint.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If there are no data, or the checkpoint is damaged.
    """
    dataset = cfg.train_dataloader.dataset
    if data is not None:
        dataset.data = list(data)
    if not dataset.get("data"):
        raise ValueError(
            "there are no images to learn from: give folders or list files (data=..., --data, or "
            "train_dataloader.dataset.data in the config)."
        )
    for path in paths_of(dataset.data):
        if not Path(path).exists():
            raise FileNotFoundError(
                f"{path}: no such folder of images or list file. Give existing ones as data "
                "(data=..., --data)."
            )
    if labelled is not None:
        _measure_on(cfg, labelled)
    cfg.resume, cfg.load_from = False, cfg.get("load_from")
    if resume:
        found = Path(resume) if not isinstance(resume, bool) else newest_intact(cfg.work_dir)
        if found is not None:
            read_resumable(found)
            cfg.resume, cfg.load_from = True, str(found.resolve())
            # The checkpoint brings the backbone: nothing else has to be fetched.
            cfg.model.backbone.pretrained = None
    return cfg


def load_recipe(model: str, *, method: str = "dinov2", recipe: str = "small") -> Config:
    """Return the config of a method for a backbone.

    Raises:
        ValueError: If there is no such method, recipe or backbone.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}. Allowed: {', '.join(map(repr, METHODS))}.")
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}. Allowed: {', '.join(map(repr, RECIPES))}.")
    if model not in ARCHITECTURES:
        raise ValueError(
            f"model is {model!r}. {nearest(model, list(ARCHITECTURES))}Allowed: "
            f"{', '.join(ARCHITECTURES)}."
        )
    folder = import_project(method) / "configs"
    family, arch = model.split("/")
    own = folder / f"{family}_{arch}_{recipe}.py"
    # Backbones without a config of their own take that of the smallest.
    cfg: Any = Config.fromfile(own if own.is_file() else folder / f"dinov2_vits14_{recipe}.py")
    cfg.model.backbone.type = {"dinov2": "DINOv2", "dinov3": "DINOv3"}[family]
    cfg.model.backbone.arch = arch
    patch = resolve_architecture(family, arch).patch_size
    cfg.train_dataloader.collate_fn.patch_size = patch
    _views(cfg).local_size = 98 if patch == 14 else 96  # 7 or 6 patches
    if family == "dinov3":
        # Rotary positions have no table: the size is only that of its views.
        cfg.model.backbone.image_size = _views(cfg).global_size
    return cfg


def import_project(method: str = "dinov2") -> Path:
    """Make the package of a method's project importable, import it, and return its folder.

    Processes started from here find it too, whichever way they are started.
    """
    name = METHODS[method]
    folder = project_path(name)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    importlib.import_module(name)
    return folder


def train_process(**settings: Any) -> None:
    """Pretrain as one of several processes; `settings` are those of `resolve_pretraining`."""
    run_training(resolve_pretraining(**settings))


def _apply(
    cfg: Config, name: str, given: Mapping[str, Any] | None, places: Mapping[str, str]
) -> None:
    options.refuse_unknown(name, given or {}, places)
    for key, value in (given or {}).items():
        options.set_value(cfg, places[key], str(value) if isinstance(value, Path) else value)


def _apply_views(cfg: Config, transform_args: Mapping[str, Any] | None) -> None:
    given = dict(transform_args or {})
    options.refuse_unknown("transform_args", given, (*VIEW_ARGS, "normalize"))
    normalize = given.pop("normalize", None)
    if normalize is not None:
        options.apply_normalize(cfg, normalize)
    _views(cfg).update(given)


def _measure_on(cfg: Config, folder: str | Path) -> None:
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of labelled images. Give one that has a subfolder for each "
            "class (labelled=..., --labelled)."
        )
    kind = "LabelledAccuracyHook"
    hooks = list(cfg.get("custom_hooks") or ())
    if not any(hook["type"] == kind for hook in hooks):
        hooks.append({"type": kind})
    for hook in hooks:
        if hook["type"] == kind:
            hook["folder"] = str(folder)
    cfg.custom_hooks = hooks


def _views(cfg: Config) -> Any:
    pipeline = cfg.train_dataloader.dataset.pipeline
    return next(step for step in pipeline if step["type"] == "MultiCropViews")


def paths_of(data: PATHS) -> list[str]:
    """Return one path or several as a list of texts."""
    return [str(data)] if isinstance(data, (str, Path)) else [str(path) for path in data]
