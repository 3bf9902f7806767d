"""mIoU of an exported model: python tools/test_deployed.py MODEL.onnx --data DATA.yaml

A model of tools/deploy.py is measured by MMDeploy's own test runner; it needs the deploy config and
the model config that lies beside it:

    python tools/test_deployed.py DIR/end2end.onnx --deploy-cfg DEPLOY_CFG --model-cfg \\
        DIR/model_config.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Measure an exported model on a dataset.")
    parser.add_argument("model", help=".onnx or .engine file")
    parser.add_argument("--data", metavar="DATA.yaml", help="the dataset")
    parser.add_argument("--deploy-cfg", metavar="FILE", help="of a model of tools/deploy.py")
    parser.add_argument("--model-cfg", metavar="FILE", help="likewise: model_config.py beside it")
    parser.add_argument("--device", default="cpu", help="likewise: cpu (default) or e.g. cuda:0")
    parser.add_argument("--show-dir", metavar="DIR", help="likewise: write painted predictions")
    parser.add_argument("--split", choices=["val", "train", "test"], default="val")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many, evenly spread")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: all cores)")
    add_debug(parser)
    return parser.parse_args(argv)


def test(args: argparse.Namespace) -> None:
    """Measure and print."""
    if (args.deploy_cfg is None) != (args.model_cfg is None):
        raise ValueError("Give both --deploy-cfg and --model-cfg, or neither of them.")
    if args.deploy_cfg is not None:
        test_with_mmdeploy(args)
        return
    if args.data is None:
        raise ValueError("Give the dataset: --data DATA.yaml.")
    if args.images is not None and args.images < 1:
        raise ValueError(f"--images is {args.images}: it must be at least 1.")
    from mmseg_eomt.apis.evaluate import evaluate_files, print_evaluation
    from mmseg_eomt.deploy.session import Session

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


def test_with_mmdeploy(args: argparse.Namespace) -> None:
    """Measure a model of tools/deploy.py; the test runner prints the table of classes."""
    from mmseg_eomt.apis.deploy import measure_deployed

    metrics = measure_deployed(
        args.deploy_cfg,
        args.model_cfg,
        args.model,
        work_dir=Path(args.model).parent / "test",
        device=args.device,
        data=args.data,
        show_dir=args.show_dir,
    )
    print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(test, parse_args(argv))
