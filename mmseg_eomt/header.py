"""The JSON header that travels with the weights: all that is needed to build the model again.

The header is plain data. It is read with `json`, checked field by field and turned into a model
config by `model_config`; nothing in it is ever imported, evaluated or unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FORMAT_VERSION = 1
HEADER_KEY = "mmseg_eomt"
"""Key of the header: in the metadata of a safetensors file, and in a training checkpoint."""

BACKBONE_TYPES = {"dinov2": "DINOv2", "dinov3": "DINOv3", "timm": "TimmViT"}
TEST_MODES = ("window", "whole")
ACTIVATIONS = ("gelu", "silu")


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
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: the model header is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{source}: the model header must be a JSON object.")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: model header has format version {version!r}; this mmseg_eomt reads "
                f"{FORMAT_VERSION}. Update mmseg_eomt, or convert the file with its writer."
            )
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(
            name
            for name, field in known.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if unknown or missing:
            raise ValueError(
                f"{source}: model header has missing fields {missing} and unknown fields {unknown}."
            )
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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _all_of(values: object, test: Callable[[object], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(map(test, values))


def _is_size(value: object) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(_is_int(side) and side > 0 for side in value)
    )


def _is_architecture(value: object) -> bool:
    # No ':' and no '/': timm would take 'hf-hub:owner/name' for something to download.
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.\-]+", value) is not None
    return isinstance(value, dict) and bool(value) and all(isinstance(key, str) for key in value)


def _is_colour(value: object) -> bool:
    return (
        _all_of(value, lambda part: isinstance(part, int) and _is_int(part) and 0 <= part <= 255)
        and len(value) == 3  # type: ignore[arg-type]
    )


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"model header field '{name}' is {value!r}; allowed: {allowed}.")


def _validate(header: ModelHeader) -> None:
    """Check every field. Raises ValueError naming field, value and allowed values."""
    _require(
        isinstance(header.family, str) and header.family in BACKBONE_TYPES,
        "family",
        header.family,
        ", ".join(BACKBONE_TYPES),
    )
    _require(
        _is_architecture(header.architecture),
        "architecture",
        header.architecture,
        "a name of letters, digits and '_.-', or a dict of dimensions with string keys",
    )
    for name in ("patch_size", "in_channels", "num_queries", "num_joint_blocks"):
        value = getattr(header, name)
        _require(_is_int(value) and value > 0, name, value, "a positive integer")
    value = header.num_upscale_blocks
    _require(_is_int(value) and value >= 0, "num_upscale_blocks", value, "an integer from 0")
    _require(
        _is_size(header.image_size),
        "image_size",
        header.image_size,
        "two positive integers (height, width)",
    )
    _require(
        header.activation in ACTIVATIONS, "activation", header.activation, ", ".join(ACTIVATIONS)
    )
    for name in ("window_size", "test_size"):
        value = getattr(header, name)
        _require(
            value is None or _is_size(value),
            name,
            value,
            "two positive integers (height, width) or null",
        )
    _require(
        _all_of(header.classes, lambda name: isinstance(name, str)) and len(header.classes) > 0,
        "classes",
        header.classes,
        "a non-empty list of names",
    )
    count = len(header.classes)
    _require(
        _all_of(header.class_ids, _is_int)
        and len(header.class_ids) == count
        and len(set(header.class_ids)) == count
        and min(header.class_ids) >= 0,
        "class_ids",
        header.class_ids,
        f"{count} different integers from 0, one per class",
    )
    _require(
        _all_of(header.palette, _is_colour) and len(header.palette) == count,
        "palette",
        header.palette,
        f"{count} RGB colours of three integers 0-255, one per class",
    )
    channels = f"{header.in_channels} finite numbers, one per channel"
    _require(
        _all_of(header.mean, _is_number) and len(header.mean) == header.in_channels,
        "mean",
        header.mean,
        channels,
    )
    _require(
        _all_of(header.std, _is_number)
        and len(header.std) == header.in_channels
        and min(header.std) > 0,
        "std",
        header.std,
        f"{channels}, above 0",
    )
    _require(isinstance(header.bgr_to_rgb, bool), "bgr_to_rgb", header.bgr_to_rgb, "true, false")
    _require(_is_int(header.ignore_index), "ignore_index", header.ignore_index, "an integer")
    _require(
        isinstance(header.test_mode, str) and header.test_mode in TEST_MODES,
        "test_mode",
        header.test_mode,
        ", ".join(TEST_MODES),
    )
    for name in ("backbone_args", "versions"):
        mapping = getattr(header, name)
        _require(
            isinstance(mapping, Mapping) and all(isinstance(key, str) for key in mapping),
            name,
            mapping,
            "an object with string keys",
        )
    allowed_args = {"registers", "model_kwargs"}
    _require(
        set(header.backbone_args) <= allowed_args,
        "backbone_args",
        header.backbone_args,
        f"only {sorted(allowed_args)}",
    )
