from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

from rich.console import Console

from mmseg_eomt.engine.hooks import ProgressHook
from tests.engine.engine_toys import runner


def test_bar_shows_steps_rate_time_and_loss(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    run = runner(tmp_path, with_val=True, interval=1, hooks=[ProgressHook(console=console)])
    streams = [
        handler.stream for handler in run.logger.handlers if type(handler) is logging.StreamHandler
    ]
    error_stream = sys.stderr
    run.train()
    text = out.getvalue()
    for part in ("train", "6/6", "it", "left", "loss ", "val", "2/2"):
        assert part in text
    assert sys.stderr is error_stream
    assert streams == [
        handler.stream for handler in run.logger.handlers if type(handler) is logging.StreamHandler
    ]


def test_nothing_is_drawn_where_output_is_no_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    runner(tmp_path, with_val=True, hooks=[ProgressHook(console=Console(file=out))]).train()
    assert out.getvalue() == ""
