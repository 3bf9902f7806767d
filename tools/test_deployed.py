"""mIoU of an exported model: python tools/test_deployed.py MODEL.onnx --data DATA.yaml"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmseg_eomt.apis.evaluate import evaluate_files, print_evaluation
from mmseg_eomt.deploy import Session
from mmseg_eomt.errors import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Measure an exported model on a dataset.")
    parser.add_argument("model", help=".onnx or .engine file")
    parser.add_argument("--data", required=True, metavar="DATA.yaml", help="the dataset")
    parser.add_argument("--split", choices=["val", "train", "test"], default="val")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many, evenly spread")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: all cores)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(argv)


def test(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.images is not None and args.images < 1:
        raise ValueError(f"--images is {args.images}: it must be at least 1.")
    session = Session(args.model, threads=args.threads)
    evaluation = evaluate_files(
        session.predict,
        args.data,
        class_ids=session.header.class_ids,
        classes=session.header.classes,
        split=args.split,
        most=args.images,
    )
    print_evaluation(evaluation, title=f"{args.model} ({session.metadata.precision})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run_tool(lambda: test(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
