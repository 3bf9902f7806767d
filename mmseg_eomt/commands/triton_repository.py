"""Serve an exported model with Triton: python tools/triton_repository.py MODEL.onnx REPOSITORY"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write the folder from which a Triton server serves an exported model."
    )
    parser.add_argument("model", help=".onnx or .engine file")
    parser.add_argument("repository", help="folder of models, for tritonserver --model-repository")
    parser.add_argument("--name", help="of the model on the server (default: the file's)")
    parser.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="most images in a batch, if it is open (default: 8, or the engine's most)",
    )
    parser.add_argument(
        "--instances", type=int, default=1, metavar="N", help="copies side by side (default: 1)"
    )
    add_debug(parser)
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    """Write the folder and say how to serve it."""
    from mmseg_eomt.deploy.triton import write_model_folder

    folder = write_model_folder(
        args.model,
        args.repository,
        name=args.name,
        max_batch=args.max_batch,
        instances=args.instances,
    )
    print(
        f"Wrote {folder}. Serve it with `tritonserver --model-repository {args.repository}`, and "
        f"ask it with `python tools/triton_predict.py {folder.name} IMAGES --out DIR`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(write, parse_args(argv))
