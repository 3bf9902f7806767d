"""Run a captured step again: python tools/replay.py work_dirs/RUN/nonfinite/step_000812_rank0.pth

Training writes such a file when a loss or gradient is not finite. Exit code 0: the same module of
the same pass made the first bad value again; 1: it did not; 2: wrong input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run a captured training step again.")
    parser.add_argument("capture", help="a file in the folder nonfinite of a run")
    parser.add_argument("--config", help="config of the run, if it imports types of your own")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Run the step and print what was found; returns the exit code."""
    from mmseg_eomt.engine.watch.capture import replay_capture

    replay = replay_capture(args.capture, config=args.config, device=args.device)
    print(f"Step {replay.step} of rank {replay.rank}. Images:")
    for path in replay.files:
        print(f"  {path}")
    print(f"In training: {replay.recorded or 'every value was finite when it was run again'}.")
    print(f"Now:         {replay.found or 'every value is finite'}.")
    if not replay.same:
        print(
            "That is not the same place: another device or another version of PyTorch rounds "
            "differently. Run it where it was captured."
        )
    return int(not replay.same)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(run, parse_args(argv))
