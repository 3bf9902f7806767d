"""What a user asks for when exporting, checked before anything is loaded.

Imports no package that only exporting needs: their absence is one of the things that are checked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from mmseg_eomt.deploy.metadata import (
    AXES,
    CHANNEL_ORDERS,
    OUTPUTS,
    PRECISIONS,
    DeployMetadata,
    InputSpec,
)
from mmseg_eomt.header import ModelHeader

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
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}.")
    return value
