"""Convert checkpoints: python tools/convert_checkpoint.py SRC OUT [--to mmseg|hf]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint, recognised by its content: backbones (Meta, timm, "
        "transformers), EoMT (official, transformers, LightlyTrain), or one of mmseg_eomt. "
        "Nothing stored in a file is executed."
    )
    parser.add_argument("source", metavar="SRC", help="file or folder")
    parser.add_argument(
        "out", metavar="OUT", help="a .safetensors file; with --to hf a folder for transformers"
    )
    parser.add_argument("--to", choices=["mmseg", "hf"], default="mmseg", help="kind of result")
    parser.add_argument(
        "--base", metavar="BACKBONE", help="backbone that official DELTA weights are added to"
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names where SRC has none: ade20k, cityscapes, coco_stuff, or a file with one "
        "name a line (or YAML, JSON)",
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="test size, where SRC does not say it"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_debug(parser)
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert and say what it was."""
    from mmseg_eomt.checkpoints.convert import convert_checkpoint, describe

    result = convert_checkpoint(
        args.source,
        args.out,
        to=args.to,
        base=args.base,
        classes=args.classes,
        image_size=args.image_size,
        force=args.force,
    )
    print(describe(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(convert, parse_args(argv))
