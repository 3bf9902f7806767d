"""What the tools share: arguments, a light start, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmseg_eomt.commands.light_packages import use_light_packages
from mmseg_eomt.errors import EXIT_USER_ERROR, USER_ERRORS, describe

if TYPE_CHECKING:
    from mmengine.config import Config

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


class ConfigOptions(argparse.Action):
    """mmengine's `DictAction`, which is imported when there is something to parse."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from mmengine.config import DictAction

        action: Any = DictAction(self.option_strings, self.dest, nargs=self.nargs)
        action(parser, namespace, values, option_string)


def add_run_arguments(parser: argparse.ArgumentParser, *, example: str) -> None:
    """Adds ``--cfg-options``, ``--launcher``, ``--local-rank`` and ``--debug``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help=f"change the config, e.g. {example}",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="job launcher")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help="by launchers")
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds ``--debug``."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def load_config(args: argparse.Namespace) -> Config:
    """The config that `add_run_arguments` describes, changed by ``--cfg-options``.

    Raises:
        FileNotFoundError: If there is no such config file.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if not Path(args.config).is_file():
        raise FileNotFoundError(f"{args.config}: no such config file.")
    from mmengine.config import Config

    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    return cfg


def run_tool(tool: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run a tool and turn wrong input into one paragraph on stderr.

    Args:
        tool: What to run; it may return an exit code.
        args: What it is handed. With ``args.debug`` exceptions pass, with their traceback.

    Returns:
        The tool's exit code, or 2 for wrong input (that of argparse for wrong arguments).
    """
    use_light_packages()
    try:
        return tool(args) or 0
    except USER_ERRORS as error:
        if args.debug:
            raise
        print(f"Error: {describe(error)}\n(--debug shows the traceback)", file=sys.stderr)
        return EXIT_USER_ERROR
