"""Checks of folder datasets: every file before training, a sample at its start."""

from __future__ import annotations

from mmseg_eomt.datasets.check.check import check_dataset
from mmseg_eomt.datasets.check.findings import DatasetReport, FileNote, Finding, SplitNumbers
from mmseg_eomt.datasets.check.report import html_report, text_report

__all__ = [
    "DatasetReport",
    "FileNote",
    "Finding",
    "SplitNumbers",
    "check_dataset",
    "html_report",
    "text_report",
]
