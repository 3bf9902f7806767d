"""Pretrain a backbone: python tools/pretrain.py configs/dinov2_vits14_small.py --data FOLDER"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmseg_eomt.commands.light_packages import imports_done
from mmseg_eomt.commands.tool import add_run_arguments, load_config, run_tool

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; names are those of mmseg_eomt's tools/train.py."""
    parser = argparse.ArgumentParser(description="Pretrain a backbone on unlabelled images.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--data", nargs="+", metavar="FOLDER", help="folders, or list files (.txt)")
    parser.add_argument(
        "--labelled",
        metavar="FOLDER",
        help="measure k-NN and linear accuracy on it: a subfolder of images for each class",
    )
    parser.add_argument("--work-dir", help="folder of the run (default: ./work_dirs/CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from this checkpoint; without a path from the newest intact one of the run",
    )
    parser.add_argument(
        "--backbone-weights", metavar="PATH|URL|NAME|none", help="weights to start from"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision on any device")
    parser.add_argument("--seed", type=int, help="seed of weights, order, views and masks")
    parser.add_argument("--dry-run", action="store_true", help="print the run, train nothing")
    add_run_arguments(parser, example="train_cfg.max_iters=1000")
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace) -> Config:
    """Return the config of the run that the arguments describe."""
    from mmseg_eomt.apis.options import mixed_precision
    from mmseg_eomt.apis.pretraining import import_project, prepare_pretraining
    from mmseg_eomt.apis.processes import agree_on_resume
    from mmseg_eomt.apis.run import default_work_dir

    import_project()
    cfg = load_config(args)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(default_work_dir(args.config))
    if args.backbone_weights is not None:
        none = args.backbone_weights.lower() == "none"
        cfg.model.backbone.pretrained = None if none else args.backbone_weights
    if args.seed is not None:
        cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    if args.amp:
        cfg.optim_wrapper.precision = mixed_precision()
    resume = True if args.resume == "auto" else (args.resume or bool(cfg.get("resume")))
    if not args.dry_run:
        resume = agree_on_resume(cfg, resume)
    return prepare_pretraining(cfg, data=args.data, labelled=args.labelled, resume=resume)


def pretrain(args: argparse.Namespace) -> None:
    """Pretrain, or print what would be trained."""
    from mmseg_eomt.apis.run import run_training, world_size_of
    from mmseg_eomt.engine.process_group import end_with_launcher

    imports_done()
    end_with_launcher()
    cfg = resolve(args)
    if args.dry_run:
        print_summary(cfg, world_size=world_size_of(args.launcher))
        return
    if args.resume and not cfg.resume:
        print(f"{cfg.work_dir}: no checkpoint to resume from; training starts anew.")
    run_training(cfg)


def print_summary(cfg: Config, *, world_size: int) -> None:
    """Print what would be trained; finds the images, builds no model."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from mmseg_eomt.apis.pretraining import paths_of

    init_default_scope(cfg.default_scope)
    images = len(DATASETS.build(cfg.train_dataloader.dataset))
    steps, batch = cfg.train_cfg.max_iters, cfg.train_cfg.global_batch_size
    head = cfg.model.head
    lines = {
        "backbone": f"{cfg.model.backbone.type} {cfg.model.backbone.arch}, from "
        f"{cfg.model.backbone.pretrained or 'scratch'}",
        "images": f"{images} in {', '.join(paths_of(cfg.train_dataloader.dataset.data))}",
        "steps": f"{steps} of {batch} images; each is seen {steps * batch / images:.1f} times",
        "processes": f"{world_size}, at most {cfg.train_dataloader.batch_size} images at once",
        "prototypes": f"{head.num_prototypes}, centring: {cfg.model.centring}",
        "run folder": cfg.work_dir,
        "resume": cfg.load_from if cfg.resume else "no",
    }
    for name, value in lines.items():
        print(f"{name + ':':<12}{value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(pretrain, parse_args(argv))
