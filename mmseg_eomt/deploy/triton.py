"""An exported model on a Triton server: its folder, its config.pbtxt, and a client for `Session`.

The fields are those of Triton's `model_config.proto` (github.com/triton-inference-server/common).

Shape legend: B images, C channels, K classes, H/W pixels.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import METADATA_KEY, DeployMetadata

BACKENDS = {".onnx": "onnxruntime", ".engine": "tensorrt"}
MODEL_FILES = {".onnx": "model.onnx", ".engine": "model.plan"}
"""Names that the backends look for."""

LABEL_FILE = "labels.txt"

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def config_text(
    name: str, suffix: str, metadata: DeployMetadata, *, max_batch: int, instances: int
) -> str:
    """Write a model's `config.pbtxt`.

    Args:
        name: Of the model, and of its folder.
        suffix: '.onnx' or '.engine'.
        metadata: What the model says.
        max_batch: Most images that Triton puts into one batch. It does so where the batch is
            open; else each request is one batch of the model's size.
        instances: Copies of the model that run side by side, on each GPU or on the CPU.
    """
    open_axes = set(metadata.dynamic)
    batched = "batch" in open_axes
    lead = [] if batched else [metadata.batch_size]
    sides = [
        -1 if axis in open_axes else size
        for axis, size in (("height", metadata.height), ("width", metadata.width))
    ]
    fixed = [metadata.height, metadata.width]
    channels = metadata.model.in_channels
    nchw = metadata.input.layout == "NCHW"

    def image_dims(height_width: list[int]) -> list[int]:
        return [channels, *height_width] if nchw else [*height_width, channels]

    kind = _TYPES[metadata.input.dtype]
    outputs = {
        "labels": ("TYPE_INT32", [*lead, *sides]),
        "scores": ("TYPE_FP32", [*lead, metadata.model.num_classes, *sides]),
    }
    parts = [
        f"name: {_quoted(name)}",
        f'backend: "{BACKENDS[suffix]}"',
        f"max_batch_size: {max_batch if batched else 0}",
        _tensor("input", metadata.input.name, kind, [*lead, *image_dims(sides)]),
    ]
    for position, output in enumerate(metadata.outputs):
        # One file of names, for the output whose values it names.
        label_file = LABEL_FILE if position == 0 else None
        parts.append(_tensor("output", output, *outputs[output], label_file=label_file))
    if batched:
        # No delay: images that wait for the model go together, none waits for others.
        parts.append("dynamic_batching { }")
    where = "KIND_GPU" if suffix == ".engine" else "KIND_AUTO"
    parts.append(f"instance_group [ {{ count: {instances} kind: {where} }} ]")
    # The first run of a shape is slow (memory, kernels); the server is ready after it.
    for batch in sorted({1, max_batch}) if batched else [1]:
        parts.append(
            f'model_warmup [ {{ name: "batch {batch}" batch_size: {batch} '
            f"inputs {{ key: {_quoted(metadata.input.name)} value {{ data_type: {kind} "
            f"dims: {[*lead, *image_dims(fixed)]} zero_data: true }} }} }} ]"
        )
    # The client reads it: classes, windows, normalisation.
    parts.append(
        f'parameters {{ key: "{METADATA_KEY}" '
        f"value {{ string_value: {_quoted(metadata.to_json())} }} }}"
    )
    return "\n".join(parts) + "\n"


def label_lines(metadata: DeployMetadata) -> list[str]:
    """Names of the values of the first output: line n, from 0, names value n."""
    header = metadata.model
    if metadata.outputs[0] == "labels" and metadata.label_values == "id":
        names = dict(zip(header.class_ids, header.classes, strict=True))
        return [names.get(value, "") for value in range(max(names) + 1)]
    return list(header.classes)


def _tensor(
    what: str, name: str, kind: str, dims: Sequence[int], *, label_file: str | None = None
) -> str:
    labels = f' label_filename: "{label_file}"' if label_file else ""
    return f"{what} [ {{ name: {_quoted(name)} data_type: {kind} dims: {list(dims)}{labels} }} ]"


def _quoted(text: str) -> str:
    """A string of the text format; `text` is ASCII without control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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


_TIMEOUT = 300.0  # seconds; a large batch on a CPU takes longer than tritonclient's 60
_NUMPY_TYPES = {"float32": "FP32", "uint8": "UINT8"}


class TritonRunner:
    """A model that `write_model_folder` prepared, over HTTP. Not safe for several threads.

    Args:
        url: Host and port of the server, without `http://`.
        model: Name of the model there.

    Attributes:
        metadata: What the model says. Its batch is the largest that the server accepts.

    Raises:
        ImportError: If `tritonclient` is missing.
        ConnectionError: If there is no server.
        ValueError: If the server has no such model, or it was not prepared by mmseg_eomt.
    """

    def __init__(self, url: str, model: str) -> None:
        self._http = _import_client()
        self._url, self._model = url, model
        if "://" in url:
            raise ValueError(f"The server is {url!r}: give host and port alone.")
        self._client = self._http.InferenceServerClient(
            url, connection_timeout=_TIMEOUT, network_timeout=_TIMEOUT
        )
        config = self._asked(self._client.get_model_config, model)
        text = config.get("parameters", {}).get(METADATA_KEY, {}).get("string_value")
        if text is None:
            raise ValueError(
                f"{model} on {url} has no metadata of mmseg_eomt in its config.pbtxt. Make its "
                "folder with tools/triton_repository.py."
            )
        metadata = DeployMetadata.from_json(text, source=f"{model} on {url}")
        largest = int(config.get("max_batch_size", 0))
        if largest:  # else a fixed batch
            metadata = dataclasses.replace(metadata, batch_size=largest)
        self.metadata = metadata

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a batch, as `Runner.run`."""
        what = self.metadata.input
        tensor = self._http.InferInput(what.name, list(images.shape), _NUMPY_TYPES[what.dtype])
        tensor.set_data_from_numpy(images)
        wanted = [self._http.InferRequestedOutput(name) for name in self.metadata.outputs]
        result = self._asked(self._client.infer, self._model, [tensor], outputs=wanted)
        return {name: result.as_numpy(name) for name in self.metadata.outputs}

    def _asked(self, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except self._http.InferenceServerException as error:
            raise ValueError(
                f"Triton on {self._url} refuses a request for {self._model!r}: {error}. "
                f"`curl -X POST {self._url}/v2/repository/index` lists its models and their state."
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"No answer from Triton on {self._url} ({error}). Start it with `tritonserver "
                "--model-repository DIR`; its HTTP port is 8000 as a rule."
            ) from error


def _import_client() -> Any:
    try:
        return importlib.import_module("tritonclient.http")
    except ImportError as error:
        raise ImportError(
            f"Triton's client cannot be imported ({error}). Install it with "
            "`pip install 'tritonclient[http]'`.",
            name="tritonclient",
        ) from error
