"""A folder in a Triton model repository that serves an exported model."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.triton.config_text import (
    LABEL_FILE,
    MODEL_FILES,
    config_text,
    label_lines,
)

DEFAULT_MAX_BATCH = 8
"""Of ONNX models with an open batch; an engine says itself how many images it takes."""

_VERSION = "1"


def write_model_folder(
    model: str | Path,
    repository: str | Path,
    *,
    name: str | None = None,
    max_batch: int | None = None,
    instances: int = 1,
) -> Path:
    """Write `REPOSITORY/NAME`: config.pbtxt, labels.txt and `1/` with a copy of the model.

    Args:
        model: A `.onnx` or `.engine` file of mmseg_eomt.
        repository: Folder that `tritonserver --model-repository` gets; it is made.
        name: The model's name on the server; None takes that of the file.
        max_batch: Most images in a batch, where the model's batch is open. None: 8, or what the
            engine was built for.
        instances: Copies that run side by side, on each GPU or on the CPU.

    Returns:
        The new folder.

    Raises:
        FileNotFoundError: If there is no such model.
        FileExistsError: If the repository has a model of this name.
        ValueError: If the model does not come from mmseg_eomt, or an argument does not fit it.
        OSError: If it cannot be written; nothing is left then.
    """
    model, repository = Path(model), Path(repository)
    if model.suffix not in MODEL_FILES:
        raise ValueError(f"{model}: an exported model ends in {' or '.join(MODEL_FILES)}.")
    if not model.is_file():
        raise FileNotFoundError(f"{model}: no such file. tools/export.py writes it.")
    name = model.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"The model's name is {name!r}; allowed: letters, digits, '_', '.' and '-'. Choose one "
            "with --name."
        )
    if instances < 1:
        raise ValueError(f"instances is {instances}: it must be at least 1.")
    metadata, most, weights = _read(model)
    text = config_text(
        name,
        model.suffix,
        metadata,
        max_batch=_fitting_batch(model, metadata, max_batch, most),
        instances=instances,
    )
    target = repository / name
    if target.exists():
        raise FileExistsError(
            f"{target} exists: a model of this name is served from it. Remove it, or choose "
            "another name with --name."
        )
    repository.mkdir(parents=True, exist_ok=True)
    # Triton may watch the repository: the folder appears as a whole.
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=repository))
    try:
        version = staging / _VERSION
        version.mkdir()
        shutil.copyfile(model, version / MODEL_FILES[model.suffix])
        for file in weights:
            shutil.copyfile(file, version / file.name)
        lines = "".join(f"{line}\n" for line in label_lines(metadata))
        (staging / LABEL_FILE).write_text(lines, encoding="utf-8")
        (staging / "config.pbtxt").write_text(text, encoding="utf-8")
        staging.chmod(0o755)  # the server is another user as a rule
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _fitting_batch(
    model: Path, metadata: DeployMetadata, max_batch: int | None, most: int | None
) -> int:
    if "batch" not in metadata.dynamic:
        if max_batch not in (None, metadata.batch_size):
            raise ValueError(
                f"{model} always takes {metadata.batch_size} images, and the largest batch is to "
                f"be {max_batch}. Leave --max-batch out, or export with --dynamic batch."
            )
        return metadata.batch_size
    if max_batch is None:
        return most or max(DEFAULT_MAX_BATCH, metadata.batch_size)
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}: it must be at least 1.")
    if most is not None and max_batch > most:
        raise ValueError(
            f"{model} was built for batches up to {most}, and the largest batch is to be "
            f"{max_batch}. Give less, or build the engine for more."
        )
    return max_batch


def _read(model: Path) -> tuple[DeployMetadata, int | None, list[Path]]:
    """Metadata, the most images an engine takes, and files of weights beside the model."""
    if model.suffix == ".engine":
        return (*_read_engine(model), [])
    import onnx

    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's own types
        raise ValueError(f"{model} is no ONNX file ({error}). Export it again.") from error
    properties = {item.key: item.value for item in proto.metadata_props}
    beside = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    weights = [model.with_name(name) for name in sorted(beside)]
    for file in weights:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: the weights of {model} are missing. Copy both.")
    return DeployMetadata.from_properties(properties, source=str(model)), None, weights


def _read_engine(model: Path) -> tuple[DeployMetadata, int]:
    from mmseg_eomt.deploy.tensorrt.record import read_engine

    _, record = read_engine(model)
    metadata = record.metadata
    if metadata is None:
        raise ValueError(
            f"{model} was not built from a model that mmseg_eomt exported: its classes and sizes "
            "are unknown. Export with tools/export.py and build with tools/build_engine.py."
        )
    profile = record.profiles[metadata.input.name]
    low, high = profile.minimum[0], profile.maximum[0]
    if "batch" in metadata.dynamic and low > 1:
        raise ValueError(
            f"{model} was built for batches of {low} to {high}; Triton makes batches from 1 on. "
            "Build the engine from batch 1 on."
        )
    return metadata, high
