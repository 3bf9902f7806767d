"""Predict images: python tools/predict.py MODEL IMAGE_OR_FOLDER --out DIR

MODEL is a checkpoint, or an exported model (.onnx, .engine), which needs no PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands.tool import add_debug, run_tool
from mmseg_eomt.deploy.runners import SUFFIXES

# Of ONNX Runtime, by --device.
PROVIDERS = {None: None, "cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider"]}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write class-id PNGs (OUT/masks) and overlays (OUT/overlays) of images."
    )
    parser.add_argument(
        "model",
        help="exported/*.safetensors, a .pth checkpoint of a run, a .onnx or a .engine file",
    )
    parser.add_argument("images", help="an image, or a folder that is searched for images")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        help="of a checkpoint's network (default: fp32)",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=["default", "max-autotune"],
        help="compile the network first (minutes); pays for many images of one shape",
    )
    add_debug(parser)
    return parser.parse_args(argv)


def predict(args: argparse.Namespace) -> None:
    """Predict and say where the results are."""
    if Path(args.model).suffix in SUFFIXES:
        count = predict_exported(args)
    else:
        from mmseg_eomt.apis.inference import predict_files

        count = predict_files(
            args.model,
            args.images,
            args.out,
            device=args.device,
            opacity=args.opacity,
            precision=args.precision or "fp32",
            compile=args.compile,
        )
    print(f"{count} images predicted; masks and overlays are in {args.out}.")


def predict_exported(args: argparse.Namespace) -> int:
    """Predict with an exported model; returns the number of images."""
    from mmseg_eomt.deploy.session import Session
    from mmseg_eomt.images.prediction_files import plan_files, write_predictions

    for option in ("precision", "compile"):
        if getattr(args, option) is not None:
            raise ValueError(
                f"--{option} is for checkpoints: {args.model} was exported in its precision. Leave "
                "it out, or export the model otherwise (tools/export.py)."
            )
    if args.device not in PROVIDERS:
        raise ValueError(
            f"--device is {args.device!r}; for exported models it is cpu or cuda, or left out."
        )
    files = plan_files(args.images, args.out, opacity=args.opacity)
    return write_predictions(Session(args.model, providers=PROVIDERS[args.device]), files)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(predict, parse_args(argv))
