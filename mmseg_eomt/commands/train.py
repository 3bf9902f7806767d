"""Train a config: python tools/train.py configs/eomt/dinov3_vits16_folder.py --data DATA.yaml"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.light_packages import imports_done
from mmseg_eomt.commands.tool import add_run_arguments, load_config, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; names are those of MMSegmentation and MMPretrain."""
    parser = argparse.ArgumentParser(description="Train a segmentor.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder of the run (default: ./work_dirs/CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from this checkpoint; without a path from the newest intact one of the run",
    )
    parser.add_argument("--data", metavar="DATA.yaml", help="one's own folders (folder configs)")
    parser.add_argument(
        "--image-size",
        nargs="+",
        type=int,
        metavar="SIDE",
        help="training crop: one side, or height and width; testing takes its short side",
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="start from the weights of a run")
    parser.add_argument(
        "--reuse-class-head",
        nargs="?",
        const=True,
        default=False,
        choices=("by_name",),
        help="with --checkpoint: take the class head over too (same classes only), or by_name: "
        "the rows of classes of the same name",
    )
    parser.add_argument(
        "--ema",
        nargs="?",
        type=float,
        const=True,
        metavar="MOMENTUM",
        help="validate and export averaged weights; MOMENTUM is the share of a new step",
    )
    parser.add_argument(
        "--backbone-weights", metavar="PATH|URL|NAME|none", help="pretrained backbone"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision on any device")
    parser.add_argument("--seed", type=int, help="seed of weights, order and augmentation")
    parser.add_argument("--no-validate", action="store_true", help="train without validation")
    parser.add_argument(
        "--profile",
        nargs=2,
        type=int,
        metavar=("STEP", "COUNT"),
        help="profile so many steps from this one on, into the folder profile of the run",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the run, train nothing")
    add_run_arguments(parser, example='train_cfg.max_iters=1000 or key="[(a,b),(c,d)]"')
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Train, or print what would be trained."""
    from mmseg_eomt.apis.options import (
        apply_ema,
        apply_profile,
        apply_transform_args,
        mixed_precision,
    )
    from mmseg_eomt.apis.processes import agree_on_resume
    from mmseg_eomt.apis.run import (
        default_work_dir,
        prepare_training,
        run_training,
        world_size_of,
    )
    from mmseg_eomt.engine.process_group import end_with_launcher

    imports_done()
    end_with_launcher()
    cfg = load_config(args)
    # Precedence as in MMSegmentation: command line, config, place or name of the config.
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(default_work_dir(args.config))
    if args.backbone_weights is not None:
        none = args.backbone_weights.lower() == "none"
        cfg.model.backbone.pretrained = None if none else args.backbone_weights
    if args.image_size is not None:
        size = args.image_size[0] if len(args.image_size) == 1 else tuple(args.image_size)
        apply_transform_args(cfg, {"image_size": size})
    if args.seed is not None:
        cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    if args.amp:
        cfg.optim_wrapper.precision = mixed_precision()
    apply_ema(cfg, args.ema)
    apply_profile(cfg, args.profile)
    resume = True if args.resume == "auto" else (args.resume or bool(cfg.get("resume")))
    if not args.dry_run:
        resume = agree_on_resume(cfg, resume)
    run = prepare_training(
        cfg,
        data=args.data,
        checkpoint=args.checkpoint,
        reuse_class_head=args.reuse_class_head,
        resume=resume,
        world_size=world_size_of(args.launcher),
        validate=not args.no_validate,
    )
    if args.dry_run:
        from mmseg_eomt.apis.summary import print_summary

        print_summary(run)
        return
    if resume and not run.cfg.resume:
        print(f"{cfg.work_dir}: no checkpoint to resume from; training starts anew.")
    run_training(run.cfg)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(train, parse_args(argv))
