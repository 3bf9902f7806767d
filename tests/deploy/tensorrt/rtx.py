"""TensorRT-RTX, which parses and builds without a GPU: where the tests find it.

Its libraries (95 MB) are in no environment of ours: `make test-all` puts them into a folder of
their own and names it in MMSEG_EOMT_TENSORRT_RTX.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest

VARIABLE = "MMSEG_EOMT_TENSORRT_RTX"


def import_rtx() -> Any:
    folder = os.environ.get(VARIABLE)
    if folder and folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError:
        if folder:
            raise  # it was asked for
        pytest.skip(f"needs tensorrt_rtx: `make test-all`, or {VARIABLE} naming its folder")
