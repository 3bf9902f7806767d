"""Checks of folder datasets: every file before training, a sample at its start."""

from __future__ import annotations

from mmseg_eomt.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "DatasetReport": "findings",
        "FileNote": "findings",
        "Finding": "findings",
        "SplitNumbers": "findings",
        "check_dataset": "check",
        "html_report": "report",
        "text_report": "report",
    },
)
