"""`config.pbtxt` of an exported model: what Triton has to know, from the model's metadata.

The fields are those of Triton's `model_config.proto` (github.com/triton-inference-server/common).
"""

from __future__ import annotations

from collections.abc import Sequence

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
