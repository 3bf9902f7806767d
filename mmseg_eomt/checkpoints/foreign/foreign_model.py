"""An EoMT of another program: what its file says, turned into a header and weights of ours.

A reader of a layout renames; everything else is read off the tensors here and checked against the
model they are for, so a file cannot claim sizes that it does not hold.

Shape legend: Q queries, K classes, C channels, P prefix tokens, N patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor

from mmseg_eomt.checkpoints.describe import ClassNames, numbered, package_versions
from mmseg_eomt.errors import listed
from mmseg_eomt.header import ModelHeader, model_config
from mmseg_eomt.images.painting import default_palette
from mmseg_eomt.models.architectures import (
    ARCHITECTURES,
    Architecture,
    default_num_joint_blocks,
    resolve_architecture,
)

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
DEFAULT_IMAGE_SIZE = 512  # of the published DINOv3 recipes, where a file does not tell


@dataclass
class ForeignModel:
    """What a reader found.

    Attributes:
        layout: Name of the layout, for people.
        state: Weights under our names. Names that the reader does not know are left as they are.
        num_heads: Attention heads; None where the file does not say.
        num_joint_blocks: L; None where it does not say.
        image_size: (height, width) of the squares or images that the model was tested on.
        grid_size: (height, width) in pixels at which a learned position table is stored.
        names: Class names and ids.
        palette: RGB colours.
        mean: Channel means on the 0-255 scale.
        std: Likewise.
        test_mode: 'window' or 'whole'.
        activation: Of mask head and upscale blocks.
        notes: What a user should know about the result.
        header: A header of ours that travelled in the file.
    """

    layout: str
    state: dict[str, Tensor]
    num_heads: int | None = None
    num_joint_blocks: int | None = None
    image_size: tuple[int, int] | None = None
    grid_size: tuple[int, int] | None = None
    names: ClassNames | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test_mode: str = "window"
    activation: str = "gelu"
    notes: list[str] = field(default_factory=list)
    header: ModelHeader | None = None


def complete(
    found: ForeignModel,
    *,
    origin: str,
    source_names: Mapping[int, str],
    classes: ClassNames | None = None,
    image_size: int | None = None,
) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Turns what a reader found into a header and weights that fit each other.

    Args:
        found: Of a reader; its notes are added to.
        origin: Names the file in errors.
        source_names: Names in the file by ``id`` of the tensor, for errors.
        classes: The user's class names; None takes those of the file.
        image_size: The user's image side in pixels; None takes that of the file.

    Returns:
        The header, and float32 weights by name.

    Raises:
        ValueError: If something is missing, left over, of another shape, or not finite.
    """
    state = found.state
    vit = {
        name.removeprefix("backbone.vit."): value
        for name, value in state.items()
        if name.startswith("backbone.vit.")
    }
    size = found.image_size if image_size is None else (image_size, image_size)
    sizes = infer_sizes(vit, num_heads=found.num_heads, grid_size=found.grid_size, origin=origin)
    found.notes += sizes.notes
    if size is None:
        size = sizes.grid_size
    if size is None:
        size = (DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
        found.notes.append(
            f"The file does not say the image size: {DEFAULT_IMAGE_SIZE} is taken (--image-size)."
        )
    queries, head = (
        _matrix(state, f"decode_head.{name}.weight", origin) for name in ("query", "class_head")
    )
    num_classes = head.shape[0] - 1
    names = _names(found, classes, num_classes, origin)
    channels = sizes.in_channels
    if found.mean is None and found.header is None:
        found.notes.append("The file does not say the normalisation: ImageNet's is taken.")
    header = ModelHeader(
        family=sizes.family,
        architecture=sizes.architecture,
        patch_size=sizes.patch_size,
        image_size=sizes.grid_size or size,
        in_channels=channels,
        num_queries=queries.shape[0],
        num_joint_blocks=found.num_joint_blocks or sizes.num_joint_blocks,
        num_upscale_blocks=_count(state, "decode_head.upscale."),
        activation=found.activation,
        classes=names.names,
        class_ids=names.ids,
        palette=names.palette or found.palette or tuple(default_palette(num_classes)),
        mean=_per_channel(found.mean or IMAGENET_MEAN, channels),
        std=_per_channel(found.std or IMAGENET_STD, channels),
        bgr_to_rgb=channels == 3,
        test_mode=found.test_mode,
        test_size=size,
        versions=package_versions(),
    )
    if found.header is not None:
        header = restored(header, found.header)
    return header, fitted(header, state, origin=origin, source_names=source_names)


def restored(header: ModelHeader, stored: ModelHeader) -> ModelHeader:
    """The header that travelled along, if it still is of the model that the file describes.

    Only it knows ids, colours and how windows are taken. If the folder was changed since, what
    its own files say is kept instead.
    """
    same = (
        "family",
        "patch_size",
        "in_channels",
        "num_queries",
        "num_upscale_blocks",
        "activation",
    )
    changed = any(
        getattr(header, name) != getattr(stored, name)
        for name in (*same, "num_joint_blocks", "classes")
    )
    close = all(
        math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
        for one, other in zip(header.mean + header.std, stored.mean + stored.std, strict=False)
    )
    if changed or not close or _sizes(header) != _sizes(stored):
        return header
    return stored.replace(versions=header.versions)


def _sizes(header: ModelHeader) -> Any:
    arch = resolve_architecture(header.family, header.architecture)
    # Rotary positions store no image size, and transformers wants one that it can test at.
    return arch.num_heads, arch.depth, header.image_size if header.family == "dinov2" else None


def fitted(
    header: ModelHeader,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    source_names: Mapping[int, str],
) -> dict[str, Tensor]:
    """Checks weights against the model of a header, without building it in memory.

    Returns:
        Contiguous float32 copies.

    Raises:
        ValueError: If names, shapes, types or values are wrong; all are listed.
    """
    init_default_scope("mmseg")
    with torch.device("meta"):
        expected = MODELS.build(model_config(header)).state_dict()
    return checked(
        state,
        {name: value.shape for name, value in expected.items()},
        origin=origin,
        source_names=source_names,
    )


def checked(
    state: Mapping[str, Tensor],
    expected: Mapping[str, torch.Size],
    *,
    origin: str,
    source_names: Mapping[int, str],
) -> dict[str, Tensor]:
    """As :func:`fitted`, against given names and shapes."""

    def called(name: str) -> str:
        return source_names.get(id(state[name]), name)

    missing = [name for name in expected if name not in state]
    unexpected = [called(name) for name in state if name not in expected]
    shapes = [
        f"{called(name)} {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    types = [
        f"{called(name)} {state[name].dtype}"
        for name in expected
        if name in state and not state[name].is_floating_point()
    ]
    values = [
        called(name)
        for name in expected
        if name in state
        and state[name].is_floating_point()
        and not torch.isfinite(state[name]).all()
    ]
    problems = [
        f"  {title}: ({len(names)}) {listed(names)}"
        for title, names in (
            ("missing (our names)", missing),
            ("left over", unexpected),
            ("of another shape", shapes),
            ("of another type than floating point", types),
            ("with NaN or infinite values", values),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{origin}: the weights are not those of the model that the file describes.\n"
            + "\n".join(problems)
            + "\nNothing was written. Take an undamaged file of the original program."
        )
    return {name: state[name].to(torch.float32, copy=True).contiguous() for name in expected}


def _matrix(state: Mapping[str, Tensor], name: str, origin: str) -> Tensor:
    value = state.get(name)
    if value is None or value.ndim != 2 or not value.shape[0] or not value.shape[1]:
        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise ValueError(f"{origin}: {name} (our name) is {found}; expected is a matrix.")
    return value


def _names(found: ForeignModel, classes: ClassNames | None, count: int, origin: str) -> ClassNames:
    names = classes or found.names
    if names is None:
        found.notes.append(
            f"The file has no class names: they are 'class 0' to 'class {count - 1}' (--classes)."
        )
        return numbered(count)
    if len(names.names) != count:
        raise ValueError(
            f"{origin}: the class head is for {count} classes, but {names.source} has "
            f"{len(names.names)}. Give --classes with {count} names in the order of the head."
        )
    return names


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Repeats the values over the channels, as programs do for images that are not RGB."""
    return tuple(float(values[index % len(values)]) for index in range(channels))


def positive(value: Any, name: str, origin: str) -> int:
    """``value`` if it is a positive integer.

    Raises:
        ValueError: If not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise ValueError(f"{origin}: {name} is {value!r}; expected is a positive integer.")
    return value


HEAD_DIMS = 64  # of every public DINOv2 and DINOv3 but ViT-7B, which is known by its sizes
_BLOCK = re.compile(r"blocks\.(\d{1,6})\.")


@dataclass(frozen=True)
class BackboneSizes:
    """What the tensors of a backbone say.

    Attributes:
        family: 'dinov2' or 'dinov3'.
        architecture: A known name, else a dict of dimensions.
        patch_size: Side of the patch kernel.
        in_channels: Of the patch kernel.
        grid_size: (height, width) in pixels of a learned position table; None for rotary ones.
        num_joint_blocks: The usual number for this depth.
        notes: What had to be guessed.
    """

    family: str
    architecture: str | dict[str, Any]
    patch_size: int
    in_channels: int
    grid_size: tuple[int, int] | None
    num_joint_blocks: int
    notes: list[str] = field(default_factory=list)


def infer_sizes(
    vit: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    grid_size: tuple[int, int] | None = None,
    origin: str,
) -> BackboneSizes:
    """Reads the sizes off weights with timm's names.

    Args:
        vit: The weights.
        num_heads: Where the file says it; None takes that of the known architecture of these
            sizes, else one head for 64 channels.
        grid_size: (height, width) in pixels of the position table, for one that is no square.
        origin: Names the file in errors.

    Raises:
        ValueError: If they are of no DINOv2 or DINOv3.
    """
    kernel = vit.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        found = "missing" if kernel is None else f"of shape {tuple(kernel.shape)}"
        raise ValueError(f"{origin}: the patch kernel is {found}; expected [C, 3, p, p].")
    dims, channels, patch = (int(side) for side in kernel.shape[:3])
    depth = _depth(vit, origin)
    family = "dinov2" if "pos_embed" in vit else "dinov3"
    registers = vit["reg_token"].shape[-2] if "reg_token" in vit else 0
    mlp_dims, gated = _mlp(vit, family, origin)
    wanted = Architecture(
        family=family,
        embed_dims=dims,
        depth=depth,
        num_heads=0,
        patch_size=patch,
        mlp_dims=mlp_dims,
        gated_mlp=gated,
        num_registers=registers,
    )
    grid = _grid(vit, patch, registers, grid_size, origin) if family == "dinov2" else None
    architecture, notes = _architecture(wanted, num_heads, origin)
    return BackboneSizes(
        family=family,
        architecture=architecture,
        patch_size=patch,
        in_channels=channels,
        grid_size=grid,
        num_joint_blocks=min(default_num_joint_blocks(depth), depth),
        notes=notes,
    )


def _depth(vit: Mapping[str, Tensor], origin: str) -> int:
    numbers = {int(match[1]) for match in map(_BLOCK.match, vit) if match}
    if not numbers or numbers != set(range(len(numbers))):
        lacking = sorted(set(range(min(max(numbers, default=0), 1000))) - numbers)
        raise ValueError(
            f"{origin}: the blocks of the backbone are not numbered without gaps: there are "
            f"{len(numbers)}, missing are {lacking[:8] or 'all'}."
        )
    return len(numbers)


def _mlp(vit: Mapping[str, Tensor], family: str, origin: str) -> tuple[int, bool]:
    """Width of the MLP (of one half if it is gated), and whether it is gated."""
    first = vit.get("blocks.0.mlp.fc1_g.weight", vit.get("blocks.0.mlp.fc1.weight"))
    second = vit.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None or first.ndim != 2 or second.ndim != 2:
        raise ValueError(
            f"{origin}: block 0 has no MLP of two matrices (blocks.0.mlp.fc1, fc2 in timm's names)."
        )
    gated = "blocks.0.mlp.fc1_g.weight" in vit
    if family == "dinov2":  # which packs both halves
        gated = first.shape[0] == 2 * second.shape[1]
    return int(second.shape[1]), gated


def _grid(
    vit: Mapping[str, Tensor],
    patch: int,
    registers: int,
    hint: tuple[int, int] | None,
    origin: str,
) -> tuple[int, int]:
    table = vit["pos_embed"]
    patches = table.shape[1] - (0 if registers else 1) if table.ndim == 3 else 0
    if hint is not None and patches == math.prod(-(-side // patch) for side in hint):
        return hint
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(
            f"{origin}: the position table {tuple(table.shape)} is for {patches} patches, which "
            f"make no square{'' if hint is None else f' and not {hint} pixels'}."
        )
    return side * patch, side * patch


def _architecture(
    wanted: Architecture, num_heads: int | None, origin: str
) -> tuple[str | dict[str, Any], list[str]]:
    compared = ("family", "embed_dims", "depth", "mlp_dims", "gated_mlp", "num_registers")
    for name, known in ARCHITECTURES.items():
        same = all(getattr(known, part) == getattr(wanted, part) for part in compared)
        if same and num_heads in (None, known.num_heads):
            return name.split("/")[1], []
    notes = []
    dims = wanted.embed_dims
    if num_heads is None:
        if dims % HEAD_DIMS:
            raise ValueError(
                f"{origin}: a backbone of {dims} channels is none that is known, and the number of "
                f"its attention heads cannot be told (no multiple of {HEAD_DIMS})."
            )
        num_heads = dims // HEAD_DIMS
        notes.append(f"Unknown architecture: {num_heads} attention heads of {HEAD_DIMS} are taken.")
    ratio = wanted.mlp_dims / dims
    if int(dims * ratio) != wanted.mlp_dims:  # lost to rounding
        ratio = (wanted.mlp_dims + 0.5) / dims
    return {
        "embed_dims": dims,
        "depth": wanted.depth,
        "num_heads": num_heads,
        "patch_size": wanted.patch_size,
        "mlp_ratio": ratio,
        "num_registers": wanted.num_registers,
        "gated_mlp": wanted.gated_mlp,
    }, notes
