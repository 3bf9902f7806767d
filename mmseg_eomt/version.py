"""The version of the package; setup.py and the changelog follow it."""

from __future__ import annotations

__version__ = "0.1.0"
