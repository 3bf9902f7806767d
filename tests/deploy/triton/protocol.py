"""Triton's own definition of `config.pbtxt`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tritonclient
from google.protobuf import text_format


def model_config() -> Any:
    """The generated module, without the gRPC client around it, which has its own dependencies."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODEL_CONFIG = model_config()


def parsed_config(folder: Path) -> Any:
    """The `config.pbtxt` of a model folder; unknown fields and wrong types are errors."""
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, MODEL_CONFIG.ModelConfig())
