"""What an exported model says about itself, and what of it is asked for.

Imports neither torch nor the mm packages, so that a program that only runs exported models can
read it.

Imports no package that only exporting needs: their absence is one of the things that are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmseg_eomt.header import Fields, ModelHeader, check_names, is_whole, read_object

FORMAT_VERSION = 1
METADATA_KEY = "mmseg_eomt"
"""Key of the whole in `metadata_props` of an ONNX file."""

AXES = ("batch", "height", "width")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
OUTPUTS = ("labels", "scores")
LAYOUTS = ("NCHW", "NHWC")
INPUT_DTYPES = ("float32", "uint8")
CHANNEL_ORDERS = ("rgb", "bgr")
LABEL_VALUES = ("index", "id")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The input of an exported model.

    Args:
        layout: 'NCHW' or 'NHWC'.
        dtype: 'float32' (normalised by the caller with the header's mean and std) or 'uint8'
            (normalised inside).
        channel_order: 'rgb' or 'bgr', what the graph is fed. Says nothing where the model does
            not take three channels: bands are then in the order of the file.
        name: Name of the tensor.
    """

    layout: str = "NCHW"
    dtype: str = "float32"
    channel_order: str = "rgb"
    name: str = "images"

    def __post_init__(self) -> None:
        fields = Fields("deploy metadata", self, "input.")
        fields.one_of("layout", LAYOUTS)
        fields.one_of("dtype", INPUT_DTYPES)
        fields.one_of("channel_order", CHANNEL_ORDERS)
        fields.text("name")


@dataclasses.dataclass(frozen=True)
class DeployMetadata:
    """An exported model: where it comes from, what goes in and what comes out.

    Args:
        model: Header of the weights it was made of.
        height: Rows of the input in pixels; where dynamic, those it was made and checked with.
        width: Columns, likewise.
        batch_size: Images, likewise.
        dynamic: Which of 'batch', 'height' and 'width' the graph leaves open, in this order.
        precision: 'fp32', 'fp16', 'bf16' or 'int8', of the network.
        input: The input.
        outputs: Of 'labels' (`int32 [B, H, W]`) and 'scores' (`float32 [B, K, H, W]`), in this
            order.
        label_values: Whether labels hold the 'index' of a class or its 'id' (`class_ids`).
        windows: Whether larger images are cut in windows, as at test. False only for models that
            are tested on whole images.
        versions: Versions of the packages that made it (for people, never checked).
        format_version: Version of this layout.
    """

    model: ModelHeader
    height: int
    width: int
    batch_size: int = 1
    dynamic: tuple[str, ...] = ()
    precision: str = "fp32"
    input: InputSpec = dataclasses.field(default_factory=InputSpec)
    outputs: tuple[str, ...] = OUTPUTS
    label_values: str = "index"
    windows: bool = True
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        fields = Fields("deploy metadata", self)
        fields.positive("height", "width", "batch_size")
        for name, allowed in (("dynamic", AXES), ("outputs", OUTPUTS)):
            fields.check(
                name,
                functools.partial(_in_order, allowed),
                f"some of {', '.join(allowed)}, each once and in this order",
            )
        fields.one_of("precision", PRECISIONS)
        fields.check("outputs", len, "one or two of labels, scores")
        fields.one_of("label_values", LABEL_VALUES)
        fields.flag("windows")
        fields.strings("versions")

    def to_json(self) -> str:
        """Return all of it as one JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    def properties(self) -> dict[str, str]:
        """Return what goes into an ONNX file's `metadata_props`.

        Besides the whole, its parts that a program without this package needs, each as JSON.
        """
        plain = {
            "classes": self.model.classes,
            "class_ids": self.model.class_ids,
            "palette": self.model.palette,
            "mean": self.model.mean,
            "std": self.model.std,
            "input_size": (self.height, self.width),
            "versions": self.versions,
        }
        return {METADATA_KEY: self.to_json(), **{k: json.dumps(v) for k, v in plain.items()}}

    @classmethod
    def from_json(cls, text: str, *, source: str = "metadata") -> DeployMetadata:
        """Read and check what `to_json` wrote.

        Args:
            text: The JSON text.
            source: Name of the file for error messages.

        Raises:
            ValueError: If it is nothing of the kind; the message names the file, the field, the
                value found and the values allowed.
        """
        what, mend = "deploy metadata", "Update mmseg_eomt, or export the model again."
        values = read_object(text, cls, what=what, source=source, mend=mend)
        check_names(values, cls, f"{source}: {what}")
        header = ModelHeader.from_json(json.dumps(values["model"]), source=source)
        check_names(values["input"], InputSpec, f"{source}: {what} field 'input'")
        for name in ("dynamic", "outputs"):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        try:
            return cls(**{**values, "model": header, "input": InputSpec(**values["input"])})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], *, source: str) -> DeployMetadata:
        """Read the metadata of an ONNX file.

        Args:
            properties: Its `metadata_props` (ONNX Runtime: `custom_metadata_map`).
            source: Name of the file for error messages.

        Raises:
            ValueError: If it was not exported by mmseg_eomt, or its metadata is invalid.
        """
        if METADATA_KEY not in properties:
            raise ValueError(
                f"{source}: no metadata of mmseg_eomt ('{METADATA_KEY}') in the file. Export it "
                "with tools/export.py or mmseg_eomt.export_onnx."
            )
        return cls.from_json(properties[METADATA_KEY], source=source)


def _in_order(allowed: tuple[str, ...], value: object) -> bool:
    return isinstance(value, tuple) and value == tuple(item for item in allowed if item in value)


OPSETS = range(18, 24)
"""18: the first that torch's exporter writes without converting back. 23: its last."""
DEFAULT_OPSET = 20
"""The first with GELU as one operator, which ONNX Runtime fuses with the bias before it."""


def check_packages(*, simplify: bool) -> None:
    """Say which packages exporting lacks.

    Raises:
        ImportError: With the command that installs them.
    """
    needed = ["onnx", "onnxruntime", "onnxscript", *(["onnxslim"] if simplify else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        hint = " (or export with simplify=False, --no-simplify)" if missing == ["onnxslim"] else ""
        raise ImportError(
            f"Exporting needs packages that are not installed: {', '.join(missing)}. Install them "
            f"with: pip install {' '.join(missing)}{hint}"
        )


def check_opset(opset_version: int) -> int:
    """Return the opset.

    Raises:
        ValueError: If torch's exporter does not write it.
    """
    if isinstance(opset_version, bool) or opset_version not in OPSETS:
        raise ValueError(
            f"opset_version is {opset_version!r}; allowed: {OPSETS[0]} to {OPSETS[-1]}. Torch's "
            "exporter writes no older one, and newer ones are not written yet."
        )
    return opset_version


def deploy_metadata(
    header: ModelHeader,
    *,
    height: int | None,
    width: int | None,
    batch_size: int,
    dynamic: str | Sequence[str],
    precision: str,
    outputs: str,
    include_preprocessing: bool,
    channel_order: str | None,
    versions: dict[str, str],
) -> DeployMetadata:
    """Turn the arguments of `export_onnx` into what the exported model says about itself.

    Raises:
        ValueError: If an argument is not allowed; the message names it, its value and what is.
    """
    default = default_size(header)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}.")
    if outputs not in (*OUTPUTS, "both"):
        raise ValueError(f"outputs is {outputs!r}; allowed: labels, scores, both.")
    return DeployMetadata(
        model=header,
        height=_side("height", height, default[0], header.patch_size),
        width=_side("width", width, default[1], header.patch_size),
        batch_size=_whole("batch_size", batch_size, 1, "a positive integer"),
        dynamic=_axes(dynamic),
        precision=precision,
        input=_input(header, include_preprocessing, channel_order),
        outputs=OUTPUTS if outputs == "both" else (outputs,),
        label_values="id" if include_preprocessing else "index",
        windows=header.test_mode == "window",
        versions=versions,
    )


def default_size(header: ModelHeader) -> tuple[int, int]:
    """Height and width of the windows that the model is tested with."""
    if header.test_mode == "window":
        if header.window_size is not None:
            return header.window_size
        if header.test_size is not None:
            return (min(header.test_size),) * 2
    return header.test_size or header.image_size


def _input(header: ModelHeader, preprocessing: bool, channel_order: str | None) -> InputSpec:
    own = "rgb" if header.bgr_to_rgb else "bgr"
    if not preprocessing:
        if channel_order is not None:
            raise ValueError(
                f"channel_order is {channel_order!r}: without include_preprocessing the caller "
                f"normalises images, whose channels are in the network's order ({own}). Leave it "
                "out, or include the preprocessing."
            )
        return InputSpec(channel_order=own)
    order = channel_order or "rgb"
    if order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order is {order!r}; allowed: {', '.join(CHANNEL_ORDERS)}.")
    return InputSpec(layout="NHWC", dtype="uint8", channel_order=order)


def _axes(dynamic: str | Sequence[str]) -> tuple[str, ...]:
    names = dynamic.split(",") if isinstance(dynamic, str) else list(dynamic)
    names = [name.strip() for name in names if name.strip()]
    unknown = sorted(set(names) - set(AXES))
    if unknown:
        raise ValueError(
            f"dynamic is {dynamic!r}; allowed: some of {', '.join(AXES)}, separated by commas, or "
            "nothing."
        )
    return tuple(axis for axis in AXES if axis in names)


def _side(name: str, value: int | None, default: int, patch: int) -> int:
    allowed = f"an integer from {patch}, the side of a patch"
    return _whole(name, default if value is None else value, patch, allowed)


def _whole(name: str, value: Any, least: int, allowed: str) -> int:
    if not is_whole(value, least):
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}.")
    return int(value)
