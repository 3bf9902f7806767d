"""MMDeploy's ONNX Runtime and TensorRT backends, as today's packages need them.

MMDeploy's own builds for TensorRT 8 to 10 and runs with 8 alone, and wants its compiled plugins,
none of which an EoMT needs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdeploy.backend.base import (
    BACKEND_MANAGERS,
    BACKEND_WRAPPER,
    BaseBackendManager,
    BaseWrapper,
)
from mmdeploy.backend.onnxruntime import ONNXRuntimeManager
from mmdeploy.utils import get_common_config, get_model_inputs
from torch import Tensor

from mmseg_eomt.deploy.tensorrt import Profile, TensorRTRunner, build_engine
from mmseg_eomt.deploy.tensorrt.runner import import_tensorrt

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


# MMDeploy imports its own backend when one is first asked for, which would then replace this one.
# Where it cannot be imported MMDeploy goes on without it, too.
with contextlib.suppress(Exception):
    importlib.import_module("mmdeploy.backend.tensorrt")


@BACKEND_WRAPPER.register_module("tensorrt", force=True)
class EoMTTensorRTWrapper(BaseWrapper):  # type: ignore[misc]
    """Runs an engine.

    Args:
        engine (str): The file; its record lies beside it.
        output_names (Sequence[str], optional): Outputs that are returned; all without it.
    """

    def __init__(self, engine: str, output_names: Sequence[str] | None = None) -> None:
        runner = TensorRTRunner(engine)
        super().__init__(list(output_names or runner.output_names))
        self.runner = runner

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, on the CPU, for one input by name."""
        (images,) = inputs.values()
        results = self.runner.run(images.cpu().numpy())
        return {name: torch.from_numpy(results[name]) for name in self.output_names}


@BACKEND_MANAGERS.register("tensorrt")
class EoMTTensorRTManager(BaseBackendManager):  # type: ignore[misc]
    """Builds strongly typed engines: their precision is in the graph, no flag changes it."""

    @classmethod
    def build_wrapper(
        cls,
        backend_files: Sequence[str],
        device: str = "cpu",
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        deploy_cfg: Any = None,
        **kwargs: Any,
    ) -> EoMTTensorRTWrapper:
        """The first of ``backend_files`` behind the interface of a module."""
        return EoMTTensorRTWrapper(backend_files[0], output_names)

    @classmethod
    def is_available(cls, with_custom_ops: bool = False) -> bool:
        """Whether TensorRT can be imported. Custom operators are not used."""
        try:
            import_tensorrt()
        except ImportError:
            return False
        return True

    @classmethod
    def get_version(cls) -> str:
        """Version of TensorRT, 'None' without it."""
        return str(import_tensorrt().__version__) if cls.is_available() else "None"

    @classmethod
    def to_backend(
        cls,
        ir_files: Sequence[str],
        work_dir: str,
        deploy_cfg: Any,
        log_level: int = logging.INFO,
        device: str = "cuda:0",
        **kwargs: Any,
    ) -> list[str]:
        """Builds an engine of each ONNX file.

        Args:
            ir_files (Sequence[str]): The ONNX files.
            work_dir (str): Folder of the engines.
            deploy_cfg (Config): Its ``model_inputs`` say for which shapes.
            log_level (int): Not used.
            device (str): Not used: an engine is for the first GPU.

        Returns:
            list[str]: The engines.

        Raises:
            ImportError: If TensorRT or the CUDA runtime is missing.
            OSError: If there is no GPU, or a file cannot be written.
            ValueError: If the graph is refused, or the shapes do not fit it.
        """
        workspace = get_common_config(deploy_cfg).get("max_workspace_size")
        engines = []
        for path, inputs in zip(ir_files, engine_inputs(deploy_cfg, len(ir_files)), strict=True):
            engine = Path(work_dir) / inputs.get("save_file", Path(path).stem + ".engine")
            build_engine(
                path,
                engine,
                profiles=engine_profiles(inputs),
                workspace_bytes=workspace or None,
            )
            engines.append(str(engine))
        return engines


def engine_inputs(deploy_cfg: Any, count: int) -> list[Mapping[str, Any]]:
    """``backend_config.model_inputs`` of each of ``count`` graphs.

    Raises:
        ValueError: If there are others than one each.
    """
    inputs = list(get_model_inputs(deploy_cfg)) or [{}] * count
    if len(inputs) != count:
        raise ValueError(
            f"backend_config.model_inputs describes {len(inputs)} graphs, but there are {count}: "
            "give one entry each."
        )
    return inputs


def engine_profiles(inputs: Mapping[str, Any]) -> dict[str, Profile]:
    """Shapes of an entry of ``backend_config.model_inputs``, by the name of the input.

    Raises:
        ValueError: If a shape is missing or they are out of order.
    """
    profiles = {}
    for name, shapes in (inputs.get("input_shapes") or {}).items():
        missing = [key for key in ("min_shape", "opt_shape", "max_shape") if not shapes.get(key)]
        if missing:
            raise ValueError(
                f"backend_config.model_inputs: input_shapes.{name} has no {', '.join(missing)}: "
                "give min_shape, opt_shape and max_shape."
            )
        profiles[name] = Profile(
            *(tuple(shapes[key]) for key in ("min_shape", "opt_shape", "max_shape"))
        )
    return profiles
