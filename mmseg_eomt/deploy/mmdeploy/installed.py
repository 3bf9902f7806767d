"""Whether MMDeploy is there, and how it gets there."""

from __future__ import annotations

import importlib.util

INSTALL = "pip install --no-deps mmdeploy==1.3.1 && pip install aenum"


def require_mmdeploy() -> None:
    """Check that MMDeploy can be imported.

    Raises:
        ImportError: If it, or what it imports, is missing; the message holds the commands.
    """
    missing = [
        name
        for name in ("mmdeploy", "aenum", "onnx", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if not missing:
        return
    command = INSTALL
    if {"onnx", "onnxruntime"} & set(missing):
        command += " onnx onnxruntime onnxscript"
    raise ImportError(
        f"MMDeploy's tools need {', '.join(missing)}, which is not installed. Run: {command} "
        "(--no-deps, as MMDeploy's own pins exclude every current onnx).",
        name=missing[0],
    )
