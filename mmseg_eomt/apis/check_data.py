"""The quick check of folder datasets before the first step: warns, refuses, explains."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmseg_eomt.datasets.check.findings import ERROR, Finding
from mmseg_eomt.datasets.check.quick_check import quick_check
from mmseg_eomt.datasets.check.report import finding_lines
from mmseg_eomt.datasets.data_description import load_data

_FULL = "tools/check_dataset.py reads every file."


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Warns of what can be read but is likely to be wrong.

    Args:
        cfg: A resolved config.
        splits: The splits of the run.

    Raises:
        ValueError: If all masks of a split show that their values are not class ids.
    """
    findings = _find(cfg, splits, data=None)
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        raise ValueError(f"{_text(errors)}\n{_FULL}")
    # The other processes would say the same.
    if findings and os.environ.get("RANK", "0") == "0":
        print_log(f"{_text(findings)}\n{_FULL}", logger="current", level=logging.WARNING)


@contextmanager
def explaining_data(cfg: Config, splits: Sequence[str], *, data: Any = None) -> Iterator[None]:
    """Adds the likely mistake to what a dataset says of its masks.

    Args:
        cfg: The config that is being resolved.
        splits: The splits of the run.
        data: Given instead of the config's.

    Raises:
        ValueError: That of the block, explained if there is something to add.
    """
    try:
        yield
    except ValueError as error:
        if "mask" not in str(error):
            raise
        try:
            findings = _find(cfg, splits, data=data)
        except (ValueError, OSError):
            findings = []  # the error at hand is the one to show
        guesses = [finding for finding in findings if finding.code.startswith("guess_")]
        if not guesses:
            raise
        raise ValueError(f"{error}\n{_text(guesses)}\n{_FULL}") from error


def _find(cfg: Config, splits: Sequence[str], *, data: Any) -> list[Finding]:
    datasets = [cfg[f"{s}_dataloader"].dataset for s in splits if cfg.get(f"{s}_dataloader")]
    own = [one for one in datasets if one.get("type") == "FolderSegDataset"]
    if not own or len({str(one.get("data")) for one in own}) > 1:
        return []  # not one's own folders, or several descriptions
    content = data if data is not None else own[0].get("data")
    if content is None:
        return []
    names = dict.fromkeys(str(one.get("split", "train")) for one in own)
    description = load_data(content, check_splits=[])
    return quick_check(description, [name for name in names if name in description.splits])


def _text(findings: Sequence[Finding]) -> str:
    return "\n".join(line for finding in findings for line in finding_lines(finding))
