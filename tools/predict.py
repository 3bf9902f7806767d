"""Predict images: python tools/predict.py CHECKPOINT IMAGE_OR_FOLDER --out DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmseg_eomt.apis.predict_files import predict_files
from mmseg_eomt.errors import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write class-id PNGs (OUT/masks) and overlays (OUT/overlays) of images."
    )
    parser.add_argument("checkpoint", help="exported/*.safetensors or a .pth checkpoint of a run")
    parser.add_argument("images", help="an image, or a folder that is searched for images")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the network"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=["default", "max-autotune"],
        help="compile the network first (minutes); pays for many images of one shape",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(argv)


def predict(args: argparse.Namespace) -> None:
    """Predict and say where the results are."""
    count = predict_files(
        args.checkpoint,
        args.images,
        args.out,
        device=args.device,
        opacity=args.opacity,
        precision=args.precision,
        compile=args.compile,
    )
    print(f"{count} images predicted; masks and overlays are in {args.out}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run_tool(lambda: predict(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
