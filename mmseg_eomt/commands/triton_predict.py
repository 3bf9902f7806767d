"""Predict images on a Triton server: python tools/triton_predict.py NAME IMAGES --out DIR

Needs no PyTorch. Images are cut in windows and put together here, as at test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write class-id PNGs (OUT/masks) and overlays (OUT/overlays) of images."
    )
    parser.add_argument("model", help="its name on the server")
    parser.add_argument("images", help="an image, or a folder that is searched for images")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--url", default="localhost:8000", help="HTTP port of the server (localhost:8000)"
    )
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    add_debug(parser)
    return parser.parse_args(argv)


def predict(args: argparse.Namespace) -> None:
    """Predict and say where the results are."""
    from mmseg_eomt.deploy.session import Session
    from mmseg_eomt.deploy.triton import TritonRunner
    from mmseg_eomt.images.prediction_files import plan_files, write_predictions

    files = plan_files(args.images, args.out, opacity=args.opacity)
    count = write_predictions(Session(TritonRunner(args.url, args.model)), files)
    print(f"{count} images predicted; masks and overlays are in {args.out}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(predict, parse_args(argv))
