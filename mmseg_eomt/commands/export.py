"""Export a trained model: python tools/export.py CHECKPOINT --out model.onnx"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import run_tool
from mmseg_eomt.deploy.metadata import CHANNEL_ORDERS, DEFAULT_OPSET, OPSETS, PRECISIONS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Export a trained model as ONNX and compare it with PyTorch."
    )
    parser.add_argument("checkpoint", help="exported/*.safetensors or a .pth checkpoint of a run")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument("--height", type=int, help="rows of the input (default: the test window's)")
    parser.add_argument("--width", type=int, help="columns, likewise")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images; the most to compare with if it is open"
    )
    parser.add_argument(
        "--dynamic",
        default="batch",
        metavar="AXES",
        help="what stays open, of batch,height,width; '' for nothing (default: batch)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--outputs", choices=["labels", "scores", "both"], default="both")
    parser.add_argument(
        "--include-preprocessing",
        action="store_true",
        help="uint8 [B, H, W, C] in, normalised inside; labels are class ids",
    )
    parser.add_argument(
        "--channel-order", choices=CHANNEL_ORDERS, help="with it: what goes in (default: rgb)"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        metavar="N",
        help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET})",
    )
    parser.add_argument(
        "--no-simplify", dest="simplify", action="store_false", help="leave onnxslim out"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare with PyTorch"
    )
    parser.add_argument("--images", metavar="DIR", help="pictures to compare on")
    parser.add_argument("--data", metavar="DATA.yaml", help="a dataset: compare on it, mIoU too")
    parser.add_argument(
        "--max-drop", type=float, metavar="MIOU", help="mIoU that may be lost (int8: 1)"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks and exporter messages"
    )
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    """Export and say where the file is."""
    from mmseg_eomt.apis.export import export_onnx

    result = export_onnx(
        args.out,
        checkpoint=args.checkpoint,
        height=args.height,
        width=args.width,
        batch_size=args.batch_size,
        dynamic=args.dynamic,
        precision=args.precision,
        outputs=args.outputs,
        include_preprocessing=args.include_preprocessing,
        channel_order=args.channel_order,
        opset_version=args.opset,
        simplify=args.simplify,
        verify=args.verify,
        images=args.images,
        data=args.data,
        max_drop=args.max_drop,
        debug=args.debug,
    )
    print(f"Exported to {result.path}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(export, parse_args(argv))
