"""Run a captured step again: python tools/replay.py work_dirs/RUN/nonfinite/step_000812_rank0.pth

Training writes such a file when a loss or gradient is not finite. Exit code 0: the same module of
the same pass made the first bad value again; 1: it did not; 2: wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmseg_eomt.engine.watch.capture import Replay, replay_capture
from mmseg_eomt.errors import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run a captured training step again.")
    parser.add_argument("capture", help="a file in the folder nonfinite of a run")
    parser.add_argument("--config", help="config of the run, if it imports types of your own")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(argv)


def show(replay: Replay) -> None:
    """Print what was found."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    replays: list[Replay] = []

    def tool() -> None:
        replays.append(replay_capture(args.capture, config=args.config, device=args.device))
        show(replays[0])

    code = run_tool(tool, debug=args.debug)
    return code or int(not replays[0].same)


if __name__ == "__main__":
    sys.exit(main())
