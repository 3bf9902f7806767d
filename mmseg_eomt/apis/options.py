"""Arguments of a run (Python's and the tools') as changes of a config, and the models' names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmseg_eomt.config_files import config_path
from mmseg_eomt.engine.hooks.profile import ProfileHook, check_window
from mmseg_eomt.models.architectures import ARCHITECTURES

# Argument -> where it lives in the config.
MODEL_ARGS = {
    "arch": "model.backbone.arch",
    "backbone_weights": "model.backbone.pretrained",
    "backbone_url": "model.backbone.pretrained",
    "patch_size": "model.backbone.patch_size",
    "in_channels": "model.backbone.in_channels",
    "num_joint_blocks": "model.backbone.num_joint_blocks",
    "drop_path_rate": "model.backbone.drop_path_rate",
    "frozen_blocks": "model.backbone.frozen_blocks",
    "with_cp": "model.backbone.with_cp",
    "rope_rescale": "model.backbone.rope_rescale",
    "num_queries": "model.decode_head.num_queries",
    "num_upscale_blocks": "model.decode_head.num_upscale_blocks",
    "masked_attention": "model.decode_head.masked_attention",
    "num_points": "model.decode_head.loss_decode.num_points",
    "class_weight": "model.decode_head.loss_decode.class_weight",
    "mask_weight": "model.decode_head.loss_decode.mask_weight",
    "dice_weight": "model.decode_head.loss_decode.dice_weight",
    "no_object_weight": "model.decode_head.loss_decode.no_object_weight",
    "class_weights": "model.decode_head.loss_decode.class_weights",
    "ignore_rule": "model.decode_head.loss_decode.ignore_rule",
    "lr": "optim_wrapper.optimizer.lr",
    "weight_decay": "optim_wrapper.optimizer.weight_decay",
    "layer_decay": "optim_wrapper.paramwise_cfg.layer_decay",
    "decay_exclude": "optim_wrapper.paramwise_cfg.decay_exclude",
    "gradient_clip": "optim_wrapper.clip_grad.max_norm",
    "warmup": "param_scheduler.warmup",
    "power": "param_scheduler.power",
}
TRANSFORM_ARGS = ("image_size", "normalize", "color_jitter", "scale_jitter", "random_flip", "val")
CHECKPOINT_ARGS = ("interval", "max_keep_ckpts", "save_best", "rule")
LOGGERS = {
    "tensorboard": "TensorboardVisBackend",
    "mlflow": "MLflowBackend",
    "wandb": "WandbBackend",
}
PRECISIONS = {
    "auto": "auto",
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    # Names that users of Lightning know.
    "32-true": "fp32",
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
}


def set_value(cfg: Config, path: str, value: Any) -> None:
    """Set `value` at a dotted path of a config; missing levels are made."""
    *parents, last = path.split(".")
    node: Any = cfg
    for name in parents:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
    node[last] = value


def apply_model_args(cfg: Config, model_args: Mapping[str, Any] | None) -> None:
    """Write `model_args` into the config.

    Raises:
        ValueError: If a name is unknown, or both backbone_weights and backbone_url are given.
    """
    given = dict(model_args or {})
    refuse_unknown("model_args", given, MODEL_ARGS)
    if given.get("backbone_weights") is not None and given.get("backbone_url") is not None:
        raise ValueError(
            "model_args has both backbone_weights and backbone_url; give the one to load from."
        )
    if given.get("backbone_url") is None:
        given.pop("backbone_url", None)
    for name, value in given.items():
        if isinstance(value, Path):
            value = str(value)
        set_value(cfg, MODEL_ARGS[name], value)


def apply_transform_args(cfg: Config, transform_args: Mapping[str, Any] | None) -> None:
    """Write `transform_args` into the pipelines, the backbone and the preprocessor.

    Raises:
        ValueError: If a name or value is not one that exists.
    """
    given = dict(transform_args or {})
    refuse_unknown("transform_args", given, TRANSFORM_ARGS)
    if given.get("image_size") is not None:
        size = image_size_of(given["image_size"], "transform_args.image_size")
        cfg.model.backbone.image_size = size[0] if size[0] == size[1] else size
        for step in steps_of(cfg, "train"):
            if step["type"] == "ScaleJitterCrop":
                step["size"] = size
        set_short_side(cfg, min(size))
    if given.get("normalize") is not None:
        apply_normalize(cfg, given["normalize"])
    for name, step_type in (("color_jitter", "EoMTColorJitter"), ("random_flip", "RandomFlip")):
        if name in given:
            _change_step(cfg, f"transform_args.{name}", step_type, given[name])
    if "scale_jitter" in given:
        _scale_jitter(cfg, given["scale_jitter"])
    val = dict(given.get("val") or {})
    refuse_unknown("transform_args.val", val, ("image_size",))
    if val.get("image_size") is not None:
        size = image_size_of(val["image_size"], "transform_args.val.image_size")
        set_short_side(cfg, min(size))


def apply_logger_args(cfg: Config, logger_args: Mapping[str, Any] | None) -> None:
    """Choose the loggers: a dict switches one on (with these arguments), None switches it off.

    Without a word about it, TensorBoard is on, MLflow and Weights & Biases are off.

    Raises:
        ValueError: If a logger is unknown or its arguments are no dict.
    """
    given = dict(logger_args or {})
    refuse_unknown("logger_args", given, LOGGERS)
    backends = list(cfg.visualizer.vis_backends)
    for name, value in given.items():
        backend_type = LOGGERS[name]
        backends = [backend for backend in backends if backend["type"] != backend_type]
        if value is None or value is False:
            continue
        if value is True:
            value = {}
        if not isinstance(value, Mapping):
            raise ValueError(
                f"logger_args.{name} is {value!r}: give a dict of its arguments ({{}} for the "
                "defaults) or None to switch it off."
            )
        # wandb's own arguments go to wandb.init.
        extra = {"init_kwargs": dict(value)} if name == "wandb" and value else dict(value)
        backends.append({"type": backend_type, **extra})
    cfg.visualizer.vis_backends = backends


def apply_checkpoint_args(cfg: Config, save_checkpoint_args: Mapping[str, Any] | None) -> None:
    """Write `save_checkpoint_args` into the checkpoint hook.

    Raises:
        ValueError: If a name is unknown.
    """
    given = dict(save_checkpoint_args or {})
    refuse_unknown("save_checkpoint_args", given, CHECKPOINT_ARGS)
    for name, value in given.items():
        cfg.default_hooks.checkpoint[name] = value


def apply_steps(cfg: Config, steps: int | None) -> None:
    """Set the number of optimiser steps; schedules are shares of it.

    Raises:
        ValueError: If it is not positive.
    """
    if steps is None:
        return
    cfg.max_iters = cfg.train_cfg.max_iters = positive("steps", steps)


def apply_batch_size(
    cfg: Config, batch_size: int | None, *, micro_batch_size: int | None, world_size: int
) -> None:
    """Set the images per optimiser step, over all devices, and the most that run at once.

    Raises:
        ValueError: If they cannot be spread evenly.
    """
    if batch_size is not None:
        cfg.train_cfg.global_batch_size = positive("batch_size", batch_size)
    if micro_batch_size is not None:
        cfg.train_dataloader.batch_size = positive("micro_batch_size", micro_batch_size)
        return
    share = cfg.train_cfg.global_batch_size // world_size
    most = min(share, cfg.train_dataloader.batch_size)
    if share and share % most:
        # The config's limit belongs to its own global batch; take the largest that divides this.
        cfg.train_dataloader.batch_size = max(n for n in range(1, most + 1) if share % n == 0)


def apply_num_workers(cfg: Config, num_workers: int | None) -> None:
    """Set the loader processes of every dataloader.

    Raises:
        ValueError: If it is negative.
    """
    if num_workers is None:
        return
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"num_workers is {num_workers!r}: it must be an integer from 0.")
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg.get(name)
        if loader:
            loader.num_workers = num_workers
            loader.persistent_workers = num_workers > 0 and loader.get("persistent_workers", True)


def apply_precision(cfg: Config, precision: str | None) -> None:
    """Set the arithmetic of training.

    Raises:
        ValueError: If it is none of `PRECISIONS`.
    """
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; allowed: {', '.join(map(repr, PRECISIONS))}."
        )
    cfg.optim_wrapper.precision = PRECISIONS[precision]


def image_size_of(value: Any, name: str) -> tuple[int, int]:
    """Return (height, width) of an int or a pair, checked."""
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(side, int) and side > 0 for side in pair)
    ):
        raise ValueError(
            f"{name} is {value!r}: give pixels as one positive integer or (height, width)."
        )
    return pair[0], pair[1]


def steps_of(cfg: Config, split: str) -> list[Any]:
    """Return the pipeline of a split: its list, so that it can be changed."""
    loader = cfg.get(f"{split}_dataloader")
    return loader.dataset.pipeline if loader else []


def set_short_side(cfg: Config, side: int) -> None:
    """Set the validation size, and the sizes of test-time augmentation in the same ratios."""
    before = None
    for split in ("val", "test"):
        for step in steps_of(cfg, split):
            if step["type"] == "ResizeShortSide":
                if not isinstance(step["size"], int):
                    raise ValueError(
                        f"ResizeShortSide.size of the config is {step['size']}: image_size only "
                        "changes square validation sizes; edit the config."
                    )
                # val and test may be one object: the first size is the config's own.
                before = before or step["size"]
                step["size"] = side
    if before is None:
        raise ValueError("the validation pipeline has no ResizeShortSide, whose size could be set.")
    for step in cfg.get("tta_pipeline") or ():
        for group in step.get("transforms", ()):
            for option in group:
                if option["type"] == "ResizeShortSide":
                    option["size"] = round(option["size"] * side / before)


def refuse_unknown(name: str, given: Mapping[str, Any], known: Any) -> None:
    """Raise a ValueError that lists the allowed keys if `given` has another."""
    for key in given:
        if key not in known:
            raise ValueError(
                f"{name} has no {key!r}. {nearest(str(key), list(known))}"
                f"Allowed: {', '.join(known)}."
            )


def positive(name: str, value: Any) -> int:
    """Return a positive integer or raise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a positive integer.")
    return value


def apply_normalize(cfg: Config, value: Any) -> None:
    """Set mean and std, given for values from 0 to 1 as torchvision does."""
    name = "transform_args.normalize"
    if not isinstance(value, Mapping) or set(value) != {"mean", "std"}:
        raise ValueError(
            f"{name} is {value!r}: give dict(mean=[...], std=[...]), one number per channel, for "
            "pixel values from 0 to 1."
        )
    for key in ("mean", "std"):
        numbers = list(value[key])
        if not all(isinstance(n, (int, float)) and math.isfinite(n) and n <= 1 for n in numbers):
            raise ValueError(
                f"{name}.{key} is {numbers}: pixel values count from 0 to 1 here; divide numbers "
                "for 0 to 255 by 255."
            )
        cfg.model.data_preprocessor[key] = [number * 255 for number in numbers]


def _change_step(cfg: Config, name: str, step_type: str, value: Any) -> None:
    pipeline = steps_of(cfg, "train")
    found = [step for step in pipeline if step["type"] == step_type]
    if value is None:
        for step in found:
            pipeline.remove(step)
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}: give a dict of {step_type}'s arguments, or None.")
    if not found:
        raise ValueError(f"{name}: the training pipeline has no {step_type} to change.")
    for step in found:
        step.update(value)


def _scale_jitter(cfg: Config, value: Any) -> None:
    name = "transform_args.scale_jitter"
    if value is None:
        value = {"min_scale": 1.0, "max_scale": 1.0}
    if not isinstance(value, Mapping) or set(value) != {"min_scale", "max_scale"}:
        raise ValueError(
            f"{name} is {value!r}: give dict(min_scale=0.5, max_scale=2.0), or None for scale 1."
        )
    for step in steps_of(cfg, "train"):
        if step["type"] == "ScaleJitterCrop":
            step["scale"] = (value["min_scale"], value["max_scale"])


def apply_ema(cfg: Config, ema: bool | float | None) -> None:
    """Switch the exponential moving average of the weights on or off.

    With it, validation, `exported/best.safetensors` and `exported/last.safetensors` are those of
    the averaged weights.

    Args:
        cfg: The config; its hooks are changed.
        ema: True averages over about the last hundredth of the steps so far, whatever the length
            of the run (MMEngine's `MomentumAnnealingEMA` with its defaults: a new step counts
            `max(0.0002, 100 / (100 + step))`). A number between 0 and 1 is the constant share with
            which a new step counts. False switches it off, None keeps the config's.

    Raises:
        ValueError: If it is anything else.
    """
    if ema is None:
        return
    hook: dict[str, Any] = {"type": "EMAHook"}
    if ema is True:
        hook["ema_type"] = "MomentumAnnealingEMA"
    elif ema is not False:
        if isinstance(ema, str) or not 0 < ema < 1:
            raise ValueError(
                f"ema is {ema!r}: give True, False, or the share with which a new step counts, "
                "between 0 and 1, such as 0.001."
            )
        hook["momentum"] = float(ema)
    hooks = [own for own in cfg.get("custom_hooks") or () if own["type"] != "EMAHook"]
    cfg.custom_hooks = [*hooks, hook] if ema is not False else hooks


def apply_profile(cfg: Config, window: Sequence[int] | None) -> None:
    """Profile some steps of a run, see `ProfileHook`.

    Args:
        cfg: The config, with its number of steps; its hooks are changed.
        window: The first step, from 1 as in the log, and how many. None keeps the config's hooks.

    Raises:
        ValueError: If it is no such pair, or the run does not have these steps.
    """
    if window is None:
        return
    if isinstance(window, str) or len(window) != 2:
        raise ValueError(f"profile is {window!r}: give (STEP, COUNT), such as (100, 5).")
    step, count = map(int, window)
    check_window(step, count, first=1, last=int(cfg.train_cfg.max_iters))
    name = ProfileHook.__name__
    hooks = [own for own in cfg.get("custom_hooks") or () if own["type"] != name]
    cfg.custom_hooks = [*hooks, {"type": name, "step": step, "count": count}]


def mixed_precision() -> str:
    """Return 'fp16' on CUDA devices without native bfloat16, else 'bf16'."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
        return "fp16"
    return "bf16"


SUFFIX = "-eomt"
MODEL_NAMES = tuple(f"{name}{SUFFIX}" for name in ARCHITECTURES)


def load_model_config(model: str) -> Config:
    """Return the config of a model name: `eomt/{family}_{arch}_folder.py`.

    Args:
        model: One of `MODEL_NAMES`, such as 'dinov3/vits16-eomt'. '-noreg' ones differ from the
            config by the backbone's `arch` alone.

    Raises:
        ValueError: If there is no such model; the message lists all.
    """
    if model not in MODEL_NAMES:
        raise ValueError(
            f"model is {model!r}. {nearest(model, MODEL_NAMES)}Allowed: {', '.join(MODEL_NAMES)}."
        )
    family, arch = model.removesuffix(SUFFIX).split("/")
    cfg: Any = Config.fromfile(
        config_path(f"eomt/{family}_{arch.removesuffix('-noreg')}_folder.py")
    )
    cfg.model.backbone.arch = arch
    return cfg


def nearest(name: str, known: Sequence[str]) -> str:
    """Return 'Did you mean ...? ' or nothing."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
