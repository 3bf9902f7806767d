"""What a run will do, as tables: `tools/train.py --dry-run`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from mmseg.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_eomt.apis.resolve import ResolvedRun
from mmseg_eomt.engine.hooks.start_from import planned_start, start_tables
from mmseg_eomt.engine.schedules import lr_factor, resolve_steps

_SHOWN_CLASSES = 40


def print_summary(run: ResolvedRun, *, console: Console | None = None) -> None:
    """Print the resolved run and train nothing; the model is built without memory.

    Args:
        run: The resolved run.
        console: Where to print; None is stdout.
    """
    console = console or Console()
    cfg = run.cfg
    with torch.device("meta"):
        model: Any = MODELS.build(copy.deepcopy(cfg.model))
    console.print(_table("Model", ("", ""), _model_rows(cfg, model)))
    console.print(_table("Parameters", ("part", "trained", "frozen"), _parameter_rows(model)))
    console.print(_table("Data", ("", ""), _data_rows(run)))
    groups = optimizer_groups(cfg, model)
    factor = lr_factor(cfg.get("auto_scale_lr"), cfg.train_cfg.global_batch_size)
    console.print(_table("Rates by group", _GROUP_HEAD, _group_rows(groups, factor)))
    console.print(_table("Schedule (optimiser steps)", ("", ""), _schedule_rows(run, factor)))
    windows = annealing_windows(cfg, model.decode_head.num_joint_blocks)
    start = planned_start(cfg, run.dataset_meta["classes"])
    for table in start_tables(start) if start else ():
        console.print(table)
    if windows:
        rows = [
            (f"{index}", f"{start:.0f}", f"{end:.0f}") for index, (start, end) in enumerate(windows)
        ]
        console.print(_table("Mask annealing", ("joint block", "from step", "to step"), rows))


def optimizer_groups(cfg: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups that training will have."""
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    paramwise = wrapper.pop("paramwise_cfg", None)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        {
            "type": wrapper.pop("constructor", "LayerDecayOptimWrapperConstructor"),
            "optim_wrapper_cfg": wrapper,
            "paramwise_cfg": paramwise,
        }
    )
    if not hasattr(constructor, "param_groups"):
        raise ValueError(
            f"--dry-run cannot list the groups of {type(constructor).__name__}; it knows "
            "LayerDecayOptimWrapperConstructor."
        )
    groups: list[dict[str, Any]] = constructor.param_groups(model)
    return groups


def annealing_windows(cfg: Any, num_blocks: int) -> list[tuple[float, float]]:
    """Return the steps between which each joint block is annealed."""
    for hook_cfg in [*cfg.default_hooks.values(), *(cfg.get("custom_hooks") or ())]:
        if hook_cfg and hook_cfg["type"] == "MaskAnnealingHook":
            hook = HOOKS.build(copy.deepcopy(hook_cfg))
            windows: list[tuple[float, float]] = hook.resolve(num_blocks, cfg.train_cfg.max_iters)
            return windows
    return []


_GROUP_HEAD = ("role", "rate", "factor", "weight decay", "tensors", "parameters")


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(head))
    for index, name in enumerate(head):
        numbers = index > 0 and len(head) > 2
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _model_rows(cfg: Any, model: Any) -> list[tuple[str, str]]:
    backbone = cfg.model.backbone
    head = model.decode_head
    return [
        ("backbone", f"{backbone.type} {backbone.get('arch', backbone.get('name'))}"),
        ("pretrained", str(backbone.get("pretrained"))),
        ("patch size", f"{model.backbone.patch_size} px"),
        ("image size", f"{backbone.get('image_size', 512)} px"),
        ("queries", str(head.num_queries)),
        ("joint blocks", f"{head.num_joint_blocks} of {model.backbone.depth}"),
        ("upscale blocks", str(len(head.upscale))),
        ("test", str(dict(cfg.model.get("test_cfg") or {}))),
    ]


def _parameter_rows(model: nn.Module) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, part in (*model.named_children(), ("total", model)):
        counts = {True: 0, False: 0}
        for parameter in part.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        if sum(counts.values()):
            rows.append((name, f"{counts[True]:,}", f"{counts[False]:,}"))
    return rows


def _data_rows(run: ResolvedRun) -> list[tuple[str, str]]:
    names = list(run.dataset_meta["classes"])
    ids = run.dataset_meta.get("class_ids") or range(len(names))
    shown = [f"{i}: {name}" for i, name in zip(ids, names, strict=True)][:_SHOWN_CLASSES]
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return [
        ("dataset", str(run.cfg.train_dataloader.dataset.type)),
        *((f"{split} images", f"{count:,}") for split, count in run.images.items()),
        ("classes", f"{len(names)} ({', '.join(shown)}{more})"),
    ]


def _group_rows(groups: list[dict[str, Any]], factor: float) -> list[tuple[str, ...]]:
    return [
        (
            group["role"],
            f"{group['lr'] * factor:.3g}",
            f"{group['lr_scale']:.3g}",
            f"{group['weight_decay']:g}",
            str(len(group["params"])),
            f"{sum(parameter.numel() for parameter in group['params']):,}",
        )
        for group in groups
    ]


def _schedule_rows(run: ResolvedRun, factor: float) -> list[tuple[str, str]]:
    cfg, batches = run.cfg, run.batches
    steps = cfg.train_cfg.max_iters
    rows = [("steps", f"{steps:,}")]
    if batches is not None:
        rows += [
            ("images a step", f"{batches.global_batch_size}"),
            (
                "made of",
                f"{batches.world_size} processes x {batches.accumulate} micro-batches x "
                f"{batches.micro_batch_size} images",
            ),
        ]
        images = run.images.get("train")
        if images:
            rows.append(("epochs", f"{steps * batches.global_batch_size / images:.1f}"))
    rows.append(("rate factor of the batch", f"{factor:.4g}"))
    scheduler = cfg.param_scheduler
    for item in scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]:
        rows.append(("scheduler", str(item["type"])))
        if item["type"] == "TwoStageWarmupPolyLR":
            head, backbone = (
                resolve_steps(value, steps, name="param_scheduler.warmup")
                for value in item["warmup"]
            )
            rows += [
                ("head warm-up", f"step 0 to {head:.0f}"),
                ("backbone warm-up", f"step {head:.0f} to {head + backbone:.0f}"),
                ("then", f"(1 - progress)^{item.get('power', 0.9)}"),
            ]
    rows += [
        ("averaged weights (EMA)", ", ".join(f"{k}={v}" for k, v in hook.items() if k != "type"))
        for hook in cfg.get("custom_hooks") or ()
        if hook["type"] == "EMAHook"
    ]
    clip = cfg.optim_wrapper.get("clip_grad")
    rows += [
        ("gradient norm", f"at most {clip['max_norm']}" if clip else "not clipped"),
        ("precision", str(cfg.optim_wrapper.get("precision", "auto"))),
        ("validation", f"every {cfg.train_cfg.get('val_interval', 1000):,} and after the last"),
        ("seed", str((cfg.get("randomness") or {}).get("seed"))),
        ("folder", str(cfg.work_dir)),
    ]
    return rows
