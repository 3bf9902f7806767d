"""The models that are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmseg_eomt import export_onnx
from tests.deploy.lively import lively_weights


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default export."""
    folder = tmp_path_factory.mktemp("exported")
    lively_weights(folder / "w.safetensors")
    path = folder / "street.onnx"
    export_onnx(path, checkpoint=folder / "w.safetensors", verify=False, simplify=False)
    return path


@pytest.fixture(scope="package")
def whole_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed batch of open sides, bytes in and ids out; names that need quoting."""
    folder = tmp_path_factory.mktemp("bytes")
    whole = {"test_mode": "whole", "test_size": None, "classes": ('a "b"', "ü\\", "c", "d", "e")}
    lively_weights(folder / "w.safetensors", **whole)
    export_onnx(
        folder / "model.onnx",
        checkpoint=folder / "w.safetensors",
        verify=False,
        simplify=False,
        dynamic="height,width",
        batch_size=2,
        height=32,
        width=48,
        include_preprocessing=True,
    )
    return folder / "model.onnx"
