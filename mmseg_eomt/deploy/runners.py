"""Running exported files: one batch in, its outputs by name.

Shape legend: B images, C channels, K classes, H/W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import DeployMetadata

SUFFIXES = (".onnx", ".engine")


class Runner(Protocol):
    """What runs an exported model."""

    @property
    def metadata(self) -> DeployMetadata | None:
        """What the model says about itself."""

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Args:
            images: As the metadata says: `float32 [B, C, H, W]` or `uint8 [B, H, W, C]`.

        Returns:
            Of 'labels' `int32 [B, H, W]` and 'scores' `float32 [B, K, H, W]` what the model has.
        """


class OnnxRunner:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The `.onnx` file.
        providers: ONNX Runtime's execution providers. None takes CUDA if this ONNX Runtime has
            it, and the CPU for the rest.
        threads: Of the CPU. None takes all cores.
        outputs: Which outputs to ask for; None takes all.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If ONNX Runtime is missing.
        ValueError: If ONNX Runtime cannot load it, has no such provider, or the file does not come
            from mmseg_eomt.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. tools/export.py writes it.")
        runtime = _import_onnxruntime()
        available = runtime.get_available_providers()
        if providers is None:
            providers = [
                name for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
                if name in available
            ]  # fmt: skip
        unknown = [name for name in providers if name not in available]
        if unknown:
            raise ValueError(
                f"ONNX Runtime has no {', '.join(unknown)} here; it has {', '.join(available)}. "
                "(CUDA comes with `pip install onnxruntime-gpu` in place of onnxruntime.)"
            )
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            if threads < 1:
                raise ValueError(f"threads is {threads}: it must be at least 1, or None.")
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # its own types, one a kind of fault
            raise ValueError(
                f"{path}: ONNX Runtime cannot load it: {error}{_hint(error)}"
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = DeployMetadata.from_properties(properties, source=str(path))
        self._names = list(outputs or self.metadata.outputs)

    @property
    def providers(self) -> list[str]:
        """Execution providers in use, the first first."""
        names: list[str] = self._session.get_providers()
        return names

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a batch, as `Runner.run`."""
        outputs = self._session.run(self._names, {self.metadata.input.name: images})
        return dict(zip(self._names, outputs, strict=True))


def open_runner(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Runner:
    """Open an exported file.

    Args:
        path: A `.onnx` file, or a `.engine` of `tools/build_engine.py`.
        providers: Of ONNX Runtime, see `OnnxRunner`.
        threads: Likewise.

    Raises:
        ValueError: If it is no such file, or an option does not apply to it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: an exported model ends in {' or '.join(SUFFIXES)}.")
    if path.suffix == ".onnx":
        return OnnxRunner(path, providers=providers, threads=threads)
    if providers is not None or threads is not None:
        raise ValueError(f"{path}: providers and threads are of ONNX Runtime; leave them out.")
    from mmseg_eomt.deploy.tensorrt import TensorRTRunner

    return TensorRTRunner(path)


def _import_onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            f"ONNX Runtime cannot be imported ({error}). Install it with `pip install onnxruntime` "
            "(on an NVIDIA GPU: onnxruntime-gpu).",
            name="onnxruntime",
        ) from error


def _hint(error: Exception) -> str:
    if "bfloat16" in str(error) or "NOT_IMPLEMENTED" in str(error):
        return (
            " (Its CPU has no kernels for bfloat16: run a bf16 model with TensorRT or on a GPU, or "
            "export with --precision fp16 or fp32.)"
        )
    return ""
