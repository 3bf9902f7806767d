"""Build a TensorRT engine: python tools/build_engine.py MODEL.onnx --out MODEL.engine

Needs a GPU and TensorRT 10 or 11, and no PyTorch. The engine runs on the kind of GPU and with the
version of TensorRT that it was built with; MODEL.engine.json beside it says which.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmseg_eomt.commands.tool import add_debug, run_tool

if TYPE_CHECKING:
    from mmseg_eomt.deploy.metadata import DeployMetadata
    from mmseg_eomt.deploy.tensorrt.record import Profile


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Build a TensorRT engine of an exported model and compare it with ONNX Runtime."
    )
    parser.add_argument(
        "model", help=".onnx file of tools/export.py; its precision is the engine's"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the engine to write")
    for name, what in (
        ("min", "smallest input (default: one image of the exported size)"),
        ("opt", "input that the engine is tuned for (default: the exported batch and size)"),
        ("max", "largest input (default: the exported batch and size)"),
    ):
        parser.add_argument(f"--{name}", metavar="BxHxW", help=f"{what}, as 4x512x1024")
    parser.add_argument(
        "--workspace", type=int, metavar="MIB", help="memory for building (default: all there is)"
    )
    parser.add_argument(
        "--timing-cache", metavar="FILE", help="measured kernels, to build similar models faster"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare it"
    )
    add_debug(parser)
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Build, compare, and say what came of it."""
    from mmseg_eomt.deploy.tensorrt.build import build_engine, read_metadata
    from mmseg_eomt.deploy.tensorrt.record import parse_size, profile_of

    model, out = Path(args.model), Path(args.out)
    metadata = read_metadata(model)
    if metadata is None:
        raise ValueError(
            f"{model}: no metadata of mmseg_eomt in the file, so its sizes are unknown. Export it "
            "with tools/export.py."
        )
    if args.workspace is not None and args.workspace < 1:
        raise ValueError(f"--workspace is {args.workspace}: it must be at least 1 MiB.")
    sizes = [None if text is None else parse_size(text) for text in (args.min, args.opt, args.max)]
    profile = profile_of(metadata, minimum=sizes[0], optimum=sizes[1], maximum=sizes[2])
    record = build_engine(
        model,
        out,
        profiles={metadata.input.name: profile},
        workspace_bytes=None if args.workspace is None else args.workspace * 2**20,
        timing_cache=args.timing_cache,
    )
    print(f"Built {out} with TensorRT {record.tensorrt} for {record.gpu}, inputs {profile}.")
    if args.verify:
        verify(model, out, metadata, profile)


def verify(model: Path, engine: Path, metadata: DeployMetadata, profile: Profile) -> None:
    """Compare the engine with ONNX Runtime; one that differs does not stay."""
    from mmseg_eomt.deploy.agreement import check_engine
    from mmseg_eomt.deploy.runners import OnnxRunner
    from mmseg_eomt.deploy.tensorrt.record import record_path
    from mmseg_eomt.deploy.tensorrt.runner import TensorRTRunner

    if metadata.precision == "bf16":
        print("Not compared: ONNX Runtime has no bfloat16 on the CPU (tools/test_deployed.py "
              "measures the engine's mIoU).")  # fmt: skip
        return
    reference = OnnxRunner(model, providers=["CPUExecutionProvider"])
    try:
        found = check_engine(TensorRTRunner(engine).run, reference.run, metadata, profile)
    except ValueError:
        engine.unlink()
        record_path(engine).unlink()
        raise
    for item in found:
        print(
            f"  {list(item.shape)}: {item.agreement:.4%} of the labels as ONNX Runtime's "
            f"({item.classes} classes, made pictures)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(build, parse_args(argv))
