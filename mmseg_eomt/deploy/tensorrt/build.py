"""From an ONNX file to an engine.

Networks are strongly typed: the graph says in what precision each operator computes, and no flag
changes that. TensorRT 11 knows no others; 10 has them behind a flag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmseg_eomt.deploy.metadata import METADATA_KEY, DeployMetadata
from mmseg_eomt.deploy.tensorrt.record import EngineRecord, Profile, record_path
from mmseg_eomt.deploy.tensorrt.runner import gpu_name, import_cuda, import_tensorrt, make_logger
from mmseg_eomt.safe_write import replaced


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    profiles: Mapping[str, Profile] | None = None,
    workspace_bytes: int | None = None,
    timing_cache: str | Path | None = None,
) -> EngineRecord:
    """Build an engine for the GPU of this machine, and write its record beside it.

    Args:
        onnx_path: The model; its tensors may lie in files beside it.
        engine_path: The engine to write; `ENGINE.json` is written beside it.
        profiles: Shapes by input name. Needed for inputs with open axes.
        workspace_bytes: Memory of the GPU that kernels may use while building. None leaves it to
            TensorRT (all of it).
        timing_cache: File of measured kernels, read if it is there and written afterwards: the
            next engine of a similar model is built faster.

    Returns:
        The record.

    Raises:
        ImportError: If TensorRT or the CUDA runtime is missing.
        OSError: If there is no GPU, or a file cannot be read or written.
        ValueError: If TensorRT refuses the model, or profiles do not fit it.
    """
    onnx_path, engine_path = Path(onnx_path), Path(engine_path)
    tensorrt, cuda = import_tensorrt(), import_cuda()
    if not engine_path.parent.is_dir():
        raise FileNotFoundError(f"{engine_path.parent}: no such folder. Make it, or name another.")
    metadata = read_metadata(onnx_path)
    serialised, used = serialise(
        tensorrt,
        onnx_path,
        profiles=profiles or {},
        workspace_bytes=workspace_bytes,
        timing_cache=None if timing_cache is None else Path(timing_cache),
    )
    record = EngineRecord(
        tensorrt=str(tensorrt.__version__),
        gpu=gpu_name(cuda),
        profiles=used,
        sha256=hashlib.sha256(serialised).hexdigest(),
        metadata=metadata,
    )
    with replaced(engine_path) as file:
        file.write(serialised)
    with replaced(record_path(engine_path)) as file:
        file.write(record.to_json().encode())
    return record


def read_metadata(onnx_path: Path) -> DeployMetadata | None:
    """Metadata of an ONNX file; None if it has none of mmseg_eomt.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ONNX file, or its metadata is invalid.
    """
    if not onnx_path.is_file():
        raise FileNotFoundError(f"{onnx_path}: no such file. tools/export.py writes it.")
    import onnx

    try:
        model = onnx.load(onnx_path, load_external_data=False)
    except Exception as error:  # protobuf's own error types
        raise ValueError(f"{onnx_path}: no ONNX file ({error}).") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in properties:
        return None
    return DeployMetadata.from_properties(properties, source=str(onnx_path))


def serialise(
    tensorrt: Any,
    onnx_path: Path,
    *,
    profiles: Mapping[str, Profile],
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
) -> tuple[bytes, dict[str, Profile]]:
    """Parse an ONNX file and build it. Needs a GPU with TensorRT, none with TensorRT-RTX.

    Args:
        tensorrt: The module, `tensorrt` or `tensorrt_rtx`.
        onnx_path: As for `build_engine`, likewise the rest.
        profiles: Shapes by input name.
        workspace_bytes: Memory of the GPU for kernels.
        timing_cache: File of measured kernels.

    Returns:
        The engine, and the shapes of all its inputs.

    Raises:
        ValueError: If the model is refused, or profiles do not fit it.
    """
    logger = make_logger(tensorrt)
    builder = tensorrt.Builder(logger)
    flags = tensorrt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))  # 11 ignores it
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ValueError(_refused(tensorrt, onnx_path, found or logger.errors))
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # float32 in the graph means float32
    if workspace_bytes is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, workspace_bytes)
    used = _add_profile(builder, config, network, profiles, source=str(onnx_path))
    if timing_cache is not None:
        _read_cache(config, timing_cache)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise ValueError(_refused(tensorrt, onnx_path, logger.errors))
    if timing_cache is not None:
        with replaced(timing_cache) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
    return bytes(serialised), used


def _add_profile(
    builder: Any, config: Any, network: Any, profiles: Mapping[str, Profile], *, source: str
) -> dict[str, Profile]:
    """Hand the profiles to the builder; returns the shapes of all inputs."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = [item.name for item in inputs]
    unknown = sorted(set(profiles) - set(names))
    if unknown:
        raise ValueError(f"{source} has no input {', '.join(unknown)}; its inputs: {names}.")
    used = {}
    described = builder.create_optimization_profile()
    for item in inputs:
        shape = tuple(item.shape)
        static = -1 not in shape
        profile = profiles.get(item.name, Profile(shape, shape, shape) if static else None)
        if profile is None:
            raise ValueError(
                f"Input {item.name!r} of {source} is {list(shape)} with open axes (-1): give a "
                "profile, the smallest, the best and the largest shape (--min, --opt, --max)."
            )
        if len(profile.minimum) != len(shape) or any(
            own not in (-1, low) or own not in (-1, high)
            for own, low, high in zip(shape, profile.minimum, profile.maximum, strict=True)
        ):
            raise ValueError(
                f"Input {item.name!r} of {source} is {list(shape)} (-1: open); the profile "
                f"{profile} does not fit it."
            )
        if not static:
            described.set_shape(item.name, profile.minimum, profile.optimum, profile.maximum)
        used[item.name] = profile
    if any(-1 in tuple(item.shape) for item in inputs):
        config.add_optimization_profile(described)
    return used


def _read_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, False):
        raise ValueError(
            f"{path}: the timing cache belongs to another TensorRT or GPU. Remove it or name "
            "another file."
        )


def _refused(tensorrt: Any, path: Path, errors: list[str]) -> str:
    reasons = "\n  ".join(errors) or "it gives no reason"
    return f"{path}: TensorRT {tensorrt.__version__} refuses the model:\n  {reasons}"
