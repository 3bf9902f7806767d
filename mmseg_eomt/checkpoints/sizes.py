"""Family, architecture and sizes of a backbone, read off its tensors (timm's names).

Shape legend: C channels, P prefix tokens, N patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmseg_eomt.models.architectures import ARCHITECTURES, Architecture, default_num_joint_blocks

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
