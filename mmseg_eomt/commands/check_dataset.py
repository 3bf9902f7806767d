"""Check a dataset: python tools/check_dataset.py DATA.yaml [--json FILE] [--html FILE]"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands.tool import add_debug, run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Read every image and mask of a dataset and report what is wrong, by file "
        "name. Exit code 0: nothing; 1: warnings; 2: errors. No file of the dataset is changed."
    )
    parser.add_argument(
        "data", metavar="DATA_OR_CONFIG", help="data file (YAML, JSON), or a config with its data"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for stdout")
    parser.add_argument("--html", metavar="FILE", help="write a report with pictures")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads (default: one a core, 16 at most)"
    )
    parser.add_argument(
        "--crop", type=int, metavar="PIXELS", help="training crop to compare image sizes with"
    )
    parser.add_argument(
        "--in-channels", type=int, metavar="N", help="channels of the images (config's, or 3)"
    )
    add_debug(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> int:
    """Check, print, write; returns the exit code."""
    from rich.console import Console

    from mmseg_eomt.datasets.check.check import check_dataset, read_source, refuse_inside_dataset
    from mmseg_eomt.datasets.check.report import html_report, text_report

    for path in (args.json, args.html):
        if path not in (None, "-"):
            refuse_inside_dataset(path, args.data)
    report = check_dataset(
        args.data,
        workers=args.workers,
        crop=args.crop,
        in_channels=args.in_channels,
        console=Console(stderr=True),
    )
    as_json = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
    print(as_json if args.json == "-" else text_report(report))
    if args.json not in (None, "-"):
        Path(args.json).write_text(as_json + "\n", encoding="utf-8")
    if args.html is not None:
        content = read_source(args.data)[0]
        Path(args.html).write_text(html_report(report, content), encoding="utf-8")
    return report.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(check, parse_args(argv))
