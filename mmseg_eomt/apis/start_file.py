"""The file that a new task starts from: read, and refused before anything else takes time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmseg_eomt.checkpoints.weights_file import is_safetensors, read_header, read_weights
from mmseg_eomt.header import BACKBONE_TYPES, HEADER_KEY, ModelHeader
from mmseg_eomt.models.architectures import Architecture, resolve_architecture

# What may differ between two models of one architecture; rules of their own deal with it.
_NOT_ARCHITECTURE = ("patch_size", "num_joint_blocks", "timm_name", "timm_tag", "init_values")
_DEFAULT_ARCH = {"dinov2": "vits14", "dinov3": "vits16"}


def inspect_checkpoint(path: str | Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Read the header, and names and shapes of the tensors of a whole model.

    Args:
        path: Lean weights or a training checkpoint of mmseg_eomt.

    Returns:
        The header, and tensors by name without memory (on the 'meta' device).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, damaged, of another program, or a backbone alone.
    """
    path = _existing_file(path)
    if is_safetensors(path):
        header, tensors = _inspect_safetensors(path)
    else:
        header, tensors = _read_training_checkpoint(path)
        tensors = {name: value.to("meta") for name, value in tensors.items()}
    _check_whole_model(tensors, path)
    return header, tensors


def read_checkpoint(path: str | Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Read a whole model; every number in it is finite.

    Returns:
        The header and the tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `inspect_checkpoint`, or if a weight is no finite number.
    """
    path = _existing_file(path)
    if is_safetensors(path):
        _inspect_safetensors(path)
        header, state = read_weights(path)
    else:
        header, state = _read_training_checkpoint(path)
    _check_whole_model(state, path)
    broken = [
        name
        for name, value in state.items()
        if not value.is_floating_point() or not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} tensors hold NaN, infinity or no floating-point numbers, such "
            f"as {', '.join(broken[:4])}. The file is damaged or its training diverged: take an "
            "earlier one."
        )
    return header, state


def check_architecture(header: ModelHeader, backbone: Mapping[str, Any], path: str | Path) -> None:
    """Check that a file's backbone has the architecture of a config's backbone.

    Compared are family, width, depth, attention heads, MLP and registers; names may differ. Patch
    size, image size, channels and joint blocks may differ too.

    Args:
        header: Of the file.
        backbone: `model.backbone` of the config.
        path: Name of the file for the error.

    Raises:
        ValueError: If the architecture is another one.
    """
    family = str(backbone["type"]).rsplit(".", 1)[-1].lower().replace("timmvit", "timm")
    if family not in BACKBONE_TYPES:
        raise ValueError(
            f"{path}: this run trains a {backbone['type']}, and only "
            f"{', '.join(BACKBONE_TYPES.values())} can start from a checkpoint."
        )
    wanted_name = backbone.get("name" if family == "timm" else "arch", _DEFAULT_ARCH.get(family))
    if family == "timm" or header.family == "timm":
        # The tag behind the dot names weights, not an architecture.
        found: Any = (header.family, str(header.architecture).split(".")[0])
        wanted: Any = (family, str(wanted_name).split(".")[0])
        kwargs = header.backbone_args.get("model_kwargs") or {}
        if found == wanted and dict(kwargs) != dict(backbone.get("model_kwargs") or {}):
            found, wanted = (*found, kwargs), (*wanted, backbone.get("model_kwargs") or {})
    else:
        found = _sizes(header.family, header.architecture, header.backbone_args)
        wanted = _sizes(family, wanted_name, backbone)
    if found == wanted:
        return
    differences = ""
    if isinstance(found, dict):
        differences = "; ".join(
            f"{name} {found[name]} in the file, {wanted[name]} here"
            for name in found
            if found[name] != wanted[name]
        )
        differences = f" ({differences})"
    raise ValueError(
        f"{path}: holds {header.family}/{_name(header.architecture)}, but this run trains "
        f"{family}/{_name(wanted_name)}{differences}: take the config (model name) of that "
        "architecture."
    )


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: is a folder. Give a weights file, such as exported/best.safetensors of a "
            f"run. {_convert(path)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file (.safetensors or .pth).")
    return path


def _read_training_checkpoint(path: Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    try:
        return read_weights(path)
    except ValueError as error:
        raise ValueError(f"{error} {_convert(path)}") from error


def _check_whole_model(tensors: Mapping[str, Tensor], path: Path) -> None:
    if not any(name.startswith("decode_head.") for name in tensors):
        raise ValueError(
            f"{path}: holds a backbone alone, but a run starts from a whole model (backbone, "
            "queries, mask and class head). Give it to --backbone-weights "
            "(model_args={'backbone_weights': ...}) instead."
        )


def _inspect_safetensors(path: Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            shapes = {
                name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names
            }
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged safetensors file ({error}). Copy or export it again."
        ) from error
    if HEADER_KEY not in metadata:
        if shapes and all(name.startswith("backbone.") for name in shapes):
            _check_whole_model(shapes, path)
        raise ValueError(
            f"{path}: no model header ('{HEADER_KEY}') in the file, so it was not written by "
            f"mmseg_eomt. {_convert(path)}"
        )
    return read_header(path), shapes


def _convert(path: Path) -> str:
    return (
        "Weights of another program are converted first: python tools/convert_checkpoint.py "
        f"{path} OUT.safetensors, then start from OUT.safetensors. A pretrained backbone goes to "
        "--backbone-weights (model_args={'backbone_weights': ...}) as it is."
    )


def _sizes(family: str, arch: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    sizes: Architecture = resolve_architecture(family, arch)
    if arguments.get("registers") is False:
        sizes = dataclasses.replace(sizes, num_registers=0)
    found = dataclasses.asdict(sizes)
    return {name: value for name, value in found.items() if name not in _NOT_ARCHITECTURE}


def _name(architecture: Any) -> str:
    return architecture if isinstance(architecture, str) else str(dict(architecture))
