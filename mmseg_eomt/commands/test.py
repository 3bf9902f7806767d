"""Test weights: python tools/test.py CONFIG CHECKPOINT [--out DIR] [--show-dir DIR] [--tta]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands.light_packages import imports_done
from mmseg_eomt.commands.tool import add_run_arguments, load_config, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; names are those of MMSegmentation."""
    parser = argparse.ArgumentParser(description="Test (and evaluate) a segmentor.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="exported/*.safetensors or a .pth checkpoint")
    parser.add_argument("--work-dir", help="folder for logs (default: ./work_dirs/CONFIG)")
    parser.add_argument("--data", metavar="DATA.yaml", help="one's own folders (folder configs)")
    parser.add_argument("--out", metavar="DIR", help="write label maps as PNG here")
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write scores of classes and images and the confusion matrix here",
    )
    parser.add_argument(
        "--boundary",
        metavar="SHARE",
        type=float,
        nargs="?",
        const=0.02,
        help="also boundary IoU, in bands of this share of the diagonal (default: 0.02)",
    )
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", metavar="DIR", help="write painted predictions here")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds per window of --show")
    add_run_arguments(parser, example="test_dataloader.batch_size=1")
    parser.add_argument("--tta", action="store_true", help="average over scales and flips")
    return parser.parse_args(argv)


def test(args: argparse.Namespace) -> None:
    """Test and print the metrics."""
    from mmseg_eomt.apis.run import run_test

    imports_done()
    cfg = load_config(args)
    # Precedence as in MMSegmentation: command line, config, name of the config.
    cfg.work_dir = (
        args.work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(args.config).stem)
    )
    if args.out:
        cfg.test_evaluator = {**cfg.test_evaluator, "output_dir": args.out}
    if args.report:
        cfg.test_evaluator = {**cfg.test_evaluator, "report_dir": args.report}
    if args.boundary is not None:
        cfg.test_evaluator = {**cfg.test_evaluator, "boundary": args.boundary}
    if args.show or args.show_dir:
        # MMSegmentation's own hook paints; the picture of training is not needed beside it.
        cfg.default_hooks.visualization = {
            "type": "SegVisualizationHook",
            "draw": True,
            "interval": 1,
            "show": args.show,
            "wait_time": args.wait_time,
        }
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    run_test(cfg, args.checkpoint, data=args.data, tta=args.tta)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(test, parse_args(argv))
