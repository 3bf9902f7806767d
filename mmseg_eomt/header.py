"""The JSON header that travels with the weights: all that is needed to build the model again.

The header is plain data. It is read with `json`, checked field by field and turned into a model
config by `model_config`; nothing in it is ever imported, evaluated or unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

FORMAT_VERSION = 1
HEADER_KEY = "mmseg_eomt"
"""Key of the header: in the metadata of a safetensors file, and in a training checkpoint."""

BACKBONE_TYPES = {"dinov2": "DINOv2", "dinov3": "DINOv3", "timm": "TimmViT"}
TEST_MODES = ("window", "whole")
ACTIVATIONS = ("gelu", "silu")


@dataclasses.dataclass(frozen=True)
class Fields:
    """Checks of an object's fields. What does not fit is named with its value and what is allowed.

    Args:
        what: Kind of object, as 'model header'.
        owner: The object.
        prefix: Of the names, for an object inside another.
    """

    what: str
    owner: object
    prefix: str = ""

    def check(self, name: str, fits: Callable[[Any], object], allowed: str) -> None:
        """Check one field.

        Raises:
            ValueError: If it does not fit.
        """
        value = getattr(self.owner, name)
        if not fits(value):
            raise ValueError(
                f"{self.what} field '{self.prefix}{name}' is {value!r}; allowed: {allowed}."
            )

    def one_of(self, name: str, allowed: Iterable[str]) -> None:
        """A field that is one of some words."""
        words = tuple(allowed)
        self.check(name, lambda value: isinstance(value, str) and value in words, ", ".join(words))

    def positive(self, *names: str) -> None:
        """Fields that are whole numbers from 1."""
        for name in names:
            self.check(name, is_whole, "a positive integer")

    def flag(self, name: str) -> None:
        """A field that is true or false."""
        self.check(name, lambda value: isinstance(value, bool), "true, false")

    def text(self, *names: str) -> None:
        """Fields that are strings with something in them."""
        for name in names:
            self.check(name, lambda value: isinstance(value, str) and value, "a non-empty string")

    def strings(self, name: str) -> None:
        """A field that is a dict of strings."""
        self.check(
            name,
            lambda value: isinstance(value, dict) and all_of((*value, *value.values()), is_text),
            "an object of strings",
        )


def is_whole(value: object, least: float = 1) -> bool:
    """Whether it is an integer (no bool) from `least` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether it is a number that is finite as a float."""
    # Not by math.isfinite: of an integer that no float holds it raises.
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= _MOST


def is_text(value: object) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def all_of(values: object, test: Callable[[Any], bool], count: int | None = None) -> bool:
    """Whether it is a list or tuple (of `count` items) whose items all pass a test."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and (count is None or len(values) == count)
        and all(map(test, values))
    )


_MOST = sys.float_info.max


def read_object(text: str, kind: Any, *, what: str, source: str, mend: str) -> dict[str, Any]:
    """Read the JSON object that a dataclass is made of, and check its names and its version.

    Args:
        text: The JSON text.
        kind: The dataclass; the default of its `format_version` is what can be read.
        what: Kind of object, for error messages.
        source: Name of the file, likewise.
        mend: What helps against another version.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: the {what} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source}: the {what} must be a JSON object.")
    version, readable = values.get("format_version"), kind.format_version
    if not is_whole(version) or version != readable:
        raise ValueError(
            f"{source}: {what} has format version {version!r}; this mmseg_eomt reads {readable}. "
            f"{mend}"
        )
    return values


def check_names(values: object, kind: Any, what: str, *, optional: bool = False) -> None:
    """Check that a JSON object has the fields of a dataclass and no others.

    Args:
        values: The object.
        kind: The dataclass.
        what: What it is, for error messages.
        optional: Whether fields with a default may be missing.

    Raises:
        ValueError: If a field is missing or unknown, or it is no object.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r}; allowed: an object.")
    fields = dataclasses.fields(kind)
    unset = dataclasses.MISSING
    needed = {
        field.name
        for field in fields
        if not optional or field.default is field.default_factory is unset
    }
    unknown = sorted(values.keys() - {field.name for field in fields})
    missing = sorted(needed - values.keys())
    if unknown or missing:
        raise ValueError(f"{what} has missing fields {missing} and unknown fields {unknown}.")


@dataclasses.dataclass(frozen=True)
class ModelHeader:
    """What a weights file says about its model.

    Args:
        family: 'dinov2', 'dinov3' or 'timm'.
        architecture: Name of the architecture ('vits16'; for 'timm' timm's model name) or the dict
            of its dimensions.
        patch_size: Side of a patch in pixels.
        image_size: (height, width) in pixels at which position tables are stored.
        in_channels: Channels of the input image.
        num_queries: Number of queries.
        num_joint_blocks: Number of last blocks that run on queries and patches together.
        num_upscale_blocks: Number of x2 blocks between patch tokens and mask features.
        classes: Names of the K classes, in the order of the class head.
        class_ids: The id that a prediction carries for each class (the user's own numbering).
        palette: One RGB colour (0 to 255) per class.
        mean: Channel means on the 0-255 scale, in the order of the network's input.
        std: Channel standard deviations on the 0-255 scale, in the order of the network's input.
        bgr_to_rgb: Whether images are read as BGR and reordered before normalisation.
        ignore_index: Label that is in no class.
        test_mode: 'window' (square windows along the long side) or 'whole'.
        test_size: (height, width) that a resized image just covers at inference: for a square its
            side is the image's short side. None keeps the size.
        window_size: (height, width) of a window; None takes squares of the short side.
        activation: Of mask head and upscale blocks, 'gelu' or 'silu'.
        backbone_args: Further plain arguments of the backbone ('registers', 'model_kwargs').
        versions: Versions of the packages that wrote the file (for people, never checked).
        format_version: Version of this layout.
    """

    family: str
    architecture: str | dict[str, Any]
    patch_size: int
    image_size: tuple[int, int]
    in_channels: int
    num_queries: int
    num_joint_blocks: int
    num_upscale_blocks: int
    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr_to_rgb: bool = True
    ignore_index: int = 255
    test_mode: str = "window"
    test_size: tuple[int, int] | None = None
    window_size: tuple[int, int] | None = None
    activation: str = "gelu"
    backbone_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _validate(self)

    def to_json(self) -> str:
        """Return the header as one JSON object.

        Raises:
            ValueError: If a dict in the header holds something JSON has no word for.
        """
        try:
            return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the model header is not plain data: {error}") from error

    @classmethod
    def from_json(cls, text: str, *, source: str = "header") -> ModelHeader:
        """Read and check a header.

        Args:
            text: What `to_json` wrote.
            source: Name of the file for error messages.

        Raises:
            ValueError: If the text is no such header; the message names the field, the value found
                and the values allowed.
        """
        mend = "Update mmseg_eomt, or convert the file with its writer."
        values = read_object(text, cls, what="model header", source=source, mend=mend)
        check_names(values, cls, f"{source}: model header", optional=True)
        for name in (
            "image_size",
            "window_size",
            "test_size",
            "classes",
            "class_ids",
            "mean",
            "std",
            "palette",
        ):
            if isinstance(values.get(name), list):
                values[name] = tuple(
                    tuple(item) if isinstance(item, list) else item for item in values[name]
                )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    def replace(self, **changes: Any) -> ModelHeader:
        """Return a checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def model_config(
    header: ModelHeader, *, window_batch: int | None = None, pretrained: None = None
) -> dict[str, Any]:
    """Build the MMSegmentation model config that a header describes.

    Args:
        header: The checked header.
        window_batch: Most windows per forward pass; None takes the segmentor's default.
        pretrained: Always None: the weights come from the file with the header.
    """
    backbone: dict[str, Any] = {"type": BACKBONE_TYPES[header.family]}
    backbone["name" if header.family == "timm" else "arch"] = header.architecture
    backbone.update(
        patch_size=header.patch_size,
        image_size=header.image_size,
        in_channels=header.in_channels,
        num_joint_blocks=header.num_joint_blocks,
        pretrained=pretrained,
        **header.backbone_args,
    )
    test_cfg: dict[str, Any] = {"mode": header.test_mode, "window_size": header.window_size}
    if window_batch is not None:
        test_cfg["window_batch"] = window_batch
    return {
        "type": "EoMTSegmentor",
        "data_preprocessor": {
            "type": "EoMTDataPreProcessor",
            "mean": list(header.mean),
            "std": list(header.std),
            "bgr_to_rgb": header.bgr_to_rgb,
            "seg_pad_val": header.ignore_index,
        },
        "backbone": backbone,
        "decode_head": {
            "type": "EoMTHead",
            "num_classes": header.num_classes,
            "num_queries": header.num_queries,
            "num_upscale_blocks": header.num_upscale_blocks,
            "activation": header.activation,
            "ignore_index": header.ignore_index,
        },
        "test_cfg": test_cfg,
    }


def _is_size(value: object) -> bool:
    return all_of(value, is_whole, 2)


def _is_architecture(value: object) -> bool:
    # No ':' and no '/': timm would take 'hf-hub:owner/name' for something to download.
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.\-]+", value) is not None
    return isinstance(value, dict) and bool(value) and all(isinstance(key, str) for key in value)


def _is_colour(value: object) -> bool:
    return all_of(value, lambda part: is_whole(part, 0) and part <= 255, 3)


def _validate(header: ModelHeader) -> None:
    """Check every field. Raises ValueError naming field, value and allowed values."""
    fields = Fields("model header", header)
    fields.one_of("family", BACKBONE_TYPES)
    fields.check(
        "architecture",
        _is_architecture,
        "a name of letters, digits and '_.-', or a dict of dimensions with string keys",
    )
    fields.positive("patch_size", "in_channels", "num_queries", "num_joint_blocks")
    fields.check("num_upscale_blocks", lambda value: is_whole(value, 0), "an integer from 0")
    size = "two positive integers (height, width)"
    fields.check("image_size", _is_size, size)
    fields.one_of("activation", ACTIVATIONS)
    for name in ("window_size", "test_size"):
        fields.check(name, lambda value: value is None or _is_size(value), f"{size} or null")
    fields.check(
        "classes", lambda value: all_of(value, is_text) and value, "a non-empty list of names"
    )
    count, channels = len(header.classes), header.in_channels
    fields.check(
        "class_ids",
        lambda value: (
            all_of(value, lambda item: is_whole(item, 0), count) and len(set(value)) == count
        ),
        f"{count} different integers from 0, one per class",
    )
    fields.check(
        "palette",
        lambda value: all_of(value, _is_colour, count),
        f"{count} RGB colours of three integers 0-255, one per class",
    )
    numbers = f"{channels} finite numbers, one per channel (in_channels)"
    fields.check("mean", lambda value: all_of(value, is_number, channels), numbers)
    fields.check(
        "std",
        lambda value: all_of(value, lambda item: is_number(item) and item > 0, channels),
        f"{numbers}, above 0",
    )
    fields.flag("bgr_to_rgb")
    fields.check("ignore_index", lambda value: is_whole(value, -math.inf), "an integer")
    fields.one_of("test_mode", TEST_MODES)
    arguments = {"registers", "model_kwargs"}
    fields.check(
        "backbone_args",
        lambda value: isinstance(value, dict) and value.keys() <= arguments,
        f"an object with only {sorted(arguments)}",
    )
    fields.strings("versions")
