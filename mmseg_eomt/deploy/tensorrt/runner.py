"""Running an engine: NumPy in, NumPy out, device memory through the CUDA runtime.

Shape legend: B images, C channels, K classes, H/W pixels.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.tensorrt.record import read_engine

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


class TensorRTRunner:
    """An engine on the GPU. One at a time may call it: not safe for several threads.

    An engine is a program. Load only those that you or someone you trust has built.

    Args:
        path: The engine; its record `ENGINE.json` lies beside it.

    Attributes:
        record: Where it was built, and for which shapes.

    Raises:
        FileNotFoundError: If the engine or its record is missing.
        ImportError: If TensorRT or the CUDA runtime is missing.
        OSError: If there is no GPU.
        ValueError: If the record is invalid, or this TensorRT or GPU cannot load the engine.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        serialised, self.record = read_engine(path)
        tensorrt, self._cuda = import_tensorrt(), import_cuda()
        self._logger = make_logger(tensorrt)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            raise ValueError(
                f"{path} was built by TensorRT {self.record.tensorrt} on {self.record.gpu}; here "
                f"are TensorRT {tensorrt.__version__} and {gpu_name(self._cuda)}, which cannot "
                f"load it: {'; '.join(self._logger.errors) or 'no reason given'}. Build it again "
                "here with tools/build_engine.py."
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MemoryError(f"{path}: the GPU has no room for it: {self._logger.errors}")
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        mode = tensorrt.TensorIOMode
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == mode.INPUT]
        if len(inputs) != 1:
            raise ValueError(f"{path} has the inputs {inputs}: one is supported.")
        self.input_name = inputs[0]
        self.output_names = [name for name in names if name not in inputs]
        self._dtypes = {
            name: np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))) for name in names
        }
        self._stream = checked(self._cuda, self._cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[Any, int]] = {}  # pointer and bytes by tensor
        weakref.finalize(self, _free, self._cuda, self._buffers, self._stream)

    @property
    def metadata(self) -> DeployMetadata | None:
        """Metadata of the exported model; None if it was not exported by mmseg_eomt."""
        return self.record.metadata

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the engine.

        Args:
            images: As the model takes them, of a shape within the profile.

        Returns:
            Outputs by name: 'labels' `int32 [B, H, W]`, 'scores' `float32 [B, K, H, W]`.

        Raises:
            ValueError: If dtype or shape are not those of the engine.
            RuntimeError: If the GPU fails.
        """
        profile = self.record.profiles[self.input_name]
        expected = self._dtypes[self.input_name]
        if images.dtype != expected or not profile.allows(images.shape):
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; the engine takes {expected} "
                f"{profile}. Give those, or build an engine with another profile."
            )
        images = np.ascontiguousarray(images)
        if not self._context.set_input_shape(self.input_name, images.shape):
            raise RuntimeError(f"TensorRT refuses the shape {images.shape}: {self._logger.errors}")
        missing = self._context.infer_shapes()
        if missing:
            raise RuntimeError(f"TensorRT needs more inputs to know its shapes: {missing}.")
        cuda, kind = self._cuda, self._cuda.cudaMemcpyKind
        self._copy(
            self._buffer(self.input_name, images.nbytes),
            images.ctypes.data,
            images.nbytes,
            kind.cudaMemcpyHostToDevice,
        )
        results = {
            name: np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
            for name in self.output_names
        }
        for name, array in results.items():
            self._buffer(name, array.nbytes)
        for name, (pointer, _) in self._buffers.items():
            self._context.set_tensor_address(name, int(pointer))
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeError(f"TensorRT failed: {'; '.join(self._logger.errors)}")
        for name, array in results.items():
            pointer, _ = self._buffers[name]
            self._copy(array.ctypes.data, pointer, array.nbytes, kind.cudaMemcpyDeviceToHost)
        checked(cuda, cuda.cudaStreamSynchronize(self._stream))
        return results

    def _buffer(self, name: str, size: int) -> Any:
        """Device memory of a tensor, of at least `size` bytes."""
        pointer, held = self._buffers.get(name, (None, 0))
        if size > held:
            if pointer is not None:
                checked(self._cuda, self._cuda.cudaFree(pointer))
                del self._buffers[name]
            pointer = checked(self._cuda, self._cuda.cudaMalloc(size))
            self._buffers[name] = (pointer, size)
        return pointer

    def _copy(self, target: Any, source: Any, size: int, kind: Any) -> None:
        checked(self._cuda, self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))


def _free(cuda: Any, buffers: dict[str, tuple[Any, int]], stream: Any) -> None:
    for pointer, _ in buffers.values():
        cuda.cudaFree(pointer)
    cuda.cudaStreamDestroy(stream)
