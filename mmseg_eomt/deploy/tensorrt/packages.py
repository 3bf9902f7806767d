"""TensorRT and CUDA, imported where they are needed, with errors that say how to get them."""

from __future__ import annotations

import importlib
import logging
from typing import Any

_OLDEST = 10  # strongly typed networks with all operators of ours, named tensors only
_log = logging.getLogger(__name__)


def import_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        ImportError: If it is missing, its libraries are, or it is older than 10.
    """
    # NVIDIA's packages exist per CUDA version; the bindings alone import without their libraries.
    mend = "Install it with `pip install tensorrt-cu13` (or tensorrt-cu12 for a CUDA 12 driver)"
    try:
        tensorrt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise ImportError(f"TensorRT cannot be imported ({error}). {mend}.") from error
    version = str(getattr(tensorrt, "__version__", "unknown"))
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < _OLDEST:
        raise ImportError(f"TensorRT is {version}, at least {_OLDEST} is needed. {mend}.")
    return tensorrt


def import_cuda() -> Any:
    """Import the CUDA runtime (`cuda.bindings.runtime`) and check that there is a GPU.

    Raises:
        ImportError: If the package is missing.
        OSError: If there is no GPU or no driver that fits.
    """
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"The CUDA runtime cannot be imported ({error}). "
            "Install it with `pip install cuda-python`, in the version of the driver's CUDA."
        ) from error
    code, count = cuda.cudaGetDeviceCount()
    if int(code) != 0:
        raise OSError(
            f"No GPU can be used: {_message(cuda, code)}. Engines are built and run on the GPU "
            "that they are for; check it with `nvidia-smi`."
        )
    if not count:
        raise OSError("There is no NVIDIA GPU. Engines are built and run on the GPU they are for.")
    return cuda


def checked(cuda: Any, result: tuple[Any, ...]) -> Any:
    """Return what a call of the CUDA runtime returned, without its error code.

    Raises:
        RuntimeError: If it failed.
    """
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(f"CUDA failed: {_message(cuda, code)}.")
    return values[0] if len(values) == 1 else values


def gpu_name(cuda: Any) -> str:
    """Name and compute capability of the current GPU, as 'NVIDIA L4 (8.9)'."""
    device = checked(cuda, cuda.cudaGetDevice())
    properties = checked(cuda, cuda.cudaGetDeviceProperties(device))
    name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
    return f"{name} ({properties.major}.{properties.minor})"


def make_logger(tensorrt: Any) -> Any:
    """A logger of TensorRT that passes warnings to `logging` and keeps errors in `.errors`."""

    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(tensorrt.ILogger.ERROR):
                self.errors.append(message.strip())
            elif int(severity) == int(tensorrt.ILogger.WARNING):
                _log.warning("TensorRT: %s", message.strip())

    return Logger()


def _message(cuda: Any, code: Any) -> str:
    _, name = cuda.cudaGetErrorName(code)
    _, text = cuda.cudaGetErrorString(code)
    return f"{name.decode()}, {text.decode()}"
