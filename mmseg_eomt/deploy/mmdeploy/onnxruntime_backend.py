"""MMDeploy's ONNX Runtime backend without onnxconverter_common and pkg_resources."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from typing import Any

from mmdeploy.backend.base import BACKEND_MANAGERS, BaseBackendManager
from mmdeploy.backend.onnxruntime import ONNXRuntimeManager

DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")


@BACKEND_MANAGERS.register("onnxruntime")
class EoMTONNXRuntimeManager(ONNXRuntimeManager):  # type: ignore[misc]
    """Runs graphs as they were exported: their precision is in them."""

    @classmethod
    def get_version(cls) -> str:
        """Version of ONNX Runtime, 'None' without it."""
        for name in DISTRIBUTIONS:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "None"

    @classmethod
    def check_env(cls, log_callback: Callable[..., Any] = lambda _: _) -> str:
        """Says which ONNX Runtime there is."""
        return str(BaseBackendManager.check_env.__func__(cls, log_callback))

    @classmethod
    def to_backend(
        cls,
        ir_files: Sequence[str],
        work_dir: str,
        deploy_cfg: Any,
        log_level: int = logging.INFO,
        device: str = "cpu",
        **kwargs: Any,
    ) -> Sequence[str]:
        """The files themselves: half precision was written when the graph was exported."""
        return ir_files
