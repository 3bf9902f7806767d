"""Rules by which the weights of one task fit the model of another, each said in words.

Shape legend: Q queries, C channels of a token, K classes, N = h * w patches, p side of a patch.

The rules work on tensors of the 'meta' device too: then they are a check and a description, made
before anything is built that takes time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from mmseg_eomt.apis.start_classes import ClassRow, fit_class_head
from mmseg_eomt.checkpoints.channels import fit_channels
from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.header import ModelHeader
from mmseg_eomt.models.architectures import resolve_architecture
from mmseg_eomt.models.positions import resample_matrix, resample_table
from mmseg_eomt.models.vit import padded_size

QUERY = "decode_head.query.weight"
UPSCALE = "decode_head.upscale."
KERNEL = "backbone.vit.patch_embed.proj.weight"
POSITIONS = "backbone.vit.pos_embed"
SAME = "taken over"


@dataclass(frozen=True)
class Rule:
    """What becomes of one part of a model.

    Attributes:
        part: Name of the part.
        found: What the file has.
        wanted: What this run has.
        done: The rule in words.
    """

    part: str
    found: str
    wanted: str
    done: str


@dataclass(frozen=True)
class Fitted:
    """Weights that fit a model, and how they came to.

    Attributes:
        header: Of the file.
        state: All tensors of the model by name.
        rules: One per part of the model.
        classes: With reuse_class_head='by_name' one row per class, else empty.
    """

    header: ModelHeader
    state: dict[str, Tensor]
    rules: list[Rule] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)


def fit(
    state: dict[str, Tensor],
    header: ModelHeader,
    model: nn.Module,
    *,
    classes: list[str],
    reuse_class_head: bool | str,
    source: Any,
) -> Fitted:
    """Make the weights of a file fit a model; see `start_from` for the rules.

    What no rule covers is left as it is in the file: a strict load then names it.

    Args:
        state: Tensors of the file by name.
        header: Of the file.
        model: The model of the new task; it is not changed. What begins anew keeps its values.
        classes: Names of the K classes of the new task.
        reuse_class_head: False, True or 'by_name'.
        source: Name of the file for error messages.

    Raises:
        ValueError: If heads of attention, activation, positions or classes do not fit.
    """
    model = unwrap(model)
    own: dict[str, Tensor] = model.state_dict()
    backbone: Any = model.backbone
    fitted = dict(state)
    _check_heads(header, backbone, source)
    _check_activation(header, model.decode_head, source)
    found = (
        _fit_patches(fitted, own, header, backbone),
        _fit_input(fitted, own, header),
        _fit_positions(fitted, own, header, backbone, source),
        _joint_blocks(header, backbone),
        _fit_queries(fitted, own),
        Rule("mask head", "", "", SAME),
        _fit_upscale(fitted, own, header),
    )
    rules = [Rule("backbone", _name(header), _name(header), SAME)]
    rules += [rule for rule in found if rule is not None]
    done, rows = fit_class_head(
        fitted,
        own,
        found=list(header.classes),
        wanted=classes,
        reuse=reuse_class_head,
        source=source,
    )
    rules.append(
        Rule("class head", f"{header.num_classes} classes", f"{len(classes)} classes", done)
    )
    return Fitted(header=header, state=fitted, rules=rules, classes=rows)


def _check_heads(header: ModelHeader, backbone: Any, source: Any) -> None:
    """The number of attention heads shows in no shape."""
    if header.family == "timm":
        return
    found = resolve_architecture(header.family, header.architecture).num_heads
    if found != backbone.num_heads:
        raise ValueError(
            f"{source}: {found} attention heads in the file, {backbone.num_heads} in the model: "
            "take the architecture of the file."
        )


def _check_activation(header: ModelHeader, head: Any, source: Any) -> None:
    """The activation of mask head and upscaling shows in no shape either."""
    if header.activation != head.activation:
        raise ValueError(
            f"{source}: mask head and upscaling have {header.activation} in the file and "
            f"{head.activation} in the model: set model.decode_head.activation="
            f"{header.activation!r} (--cfg-options)."
        )


def _fit_patches(
    fitted: dict[str, Tensor], own: dict[str, Tensor], header: ModelHeader, backbone: Any
) -> Rule:
    """Kernel ``[C, channels, p, p]`` to another patch side (FlexiViT, arXiv 2212.08013)."""
    side = int(backbone.patch_size)
    kernel = fitted.get(KERNEL)
    done = SAME
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2:] != own[KERNEL].shape[2:]:
        fitted[KERNEL] = resample_patch_embed(kernel.float(), [side, side])
        done = "kernel of the patch embedding resampled (pseudo-inverse of a bicubic resize)"
    return Rule("patch size", f"{header.patch_size} px", f"{side} px", done)


def _fit_input(
    fitted: dict[str, Tensor], own: dict[str, Tensor], header: ModelHeader
) -> Rule | None:
    """Kernel ``[C, channels, p, p]`` to another number of channels of the image."""
    kernel = fitted.get(KERNEL)
    if kernel is None or kernel.ndim != 4:
        return None
    found, wanted = kernel.shape[1], own[KERNEL].shape[1]
    done = SAME
    if found != wanted:
        fitted[KERNEL], done = fit_channels(kernel.float(), wanted)
    return Rule("input channels", str(found), str(wanted), done)


def _fit_positions(
    fitted: dict[str, Tensor],
    own: dict[str, Tensor],
    header: ModelHeader,
    backbone: Any,
    source: Any,
) -> Rule:
    """Position table ``[1, N, C]`` or ``[1, P + N, C]`` to another grid."""
    vit = backbone.vit
    here = tuple(int(side) for side in vit.patch_embed.grid_size)
    height, width = padded_size(header.image_size, header.patch_size)
    there = (height // header.patch_size, width // header.patch_size)
    found, wanted = (f"{grid[0]} x {grid[1]} patches" for grid in (there, here))
    table = fitted.get(POSITIONS)
    if table is None or POSITIONS not in own:
        return Rule("image size", found, wanted, "nothing to do: rotary positions fit any grid")
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    if table.ndim != 3 or table.shape[1] != prefix + there[0] * there[1]:
        raise ValueError(
            f"{source}: the header says {header.image_size} pixels in patches of "
            f"{header.patch_size}, so {prefix + there[0] * there[1]} positions, but the table has "
            f"the shape {tuple(table.shape)}: the file is damaged or was edited."
        )
    if there == here:
        return Rule("image size", found, wanted, SAME)
    fitted[POSITIONS] = _resampled_positions(table.float(), there, here, prefix=prefix)
    return Rule("image size", found, wanted, "position table resampled (bicubic, antialiased)")


def _resampled_positions(
    table: Tensor, there: tuple[int, int], here: tuple[int, ...], *, prefix: int
) -> Tensor:
    if table.is_meta:
        return table.new_empty(1, prefix + here[0] * here[1], table.shape[-1])
    rows, columns = (
        resample_matrix(old, new, device=table.device) for old, new in zip(there, here, strict=True)
    )
    patches = resample_table(table[:, prefix:], there, rows, columns)
    return torch.cat((table[:, :prefix], patches), dim=1)


def _joint_blocks(header: ModelHeader, backbone: Any) -> Rule:
    found, wanted, depth = header.num_joint_blocks, backbone.num_joint_blocks, backbone.depth
    done = SAME
    if found != wanted:
        done = f"no weights of their own: queries join before block {depth - wanted}, not "
        done += f"{depth - found} (counted from 0)"
    return Rule("joint blocks", str(found), str(wanted), done)


def _fit_queries(fitted: dict[str, Tensor], own: dict[str, Tensor]) -> Rule | None:
    """Queries ``[Q, C]``: the first ones that both have."""
    queries, mine = fitted.get(QUERY), own[QUERY]
    if queries is None:
        return None
    found, wanted = len(queries), len(mine)
    done = SAME
    if found != wanted and queries.shape[1:] == mine.shape[1:]:
        shared = min(found, wanted)
        merged = mine.detach().clone()
        merged[:shared] = queries[:shared].to(merged)
        fitted[QUERY] = merged
        rest = f"{wanted - shared} begin anew" if wanted > found else f"{found - shared} left out"
        done = f"first {shared} taken, {rest}"
    return Rule("queries", str(found), str(wanted), done)


def _fit_upscale(fitted: dict[str, Tensor], own: dict[str, Tensor], header: ModelHeader) -> Rule:
    """Upscale blocks, counted from the patch grid: the first ones that both have."""
    found = header.num_upscale_blocks
    wanted = len({_block(name) for name in own if name.startswith(UPSCALE)})
    for name in [name for name in fitted if name.startswith(UPSCALE)]:
        if wanted <= _block(name) < found:
            del fitted[name]
    for name, value in own.items():
        if name.startswith(UPSCALE) and _block(name) >= found:
            fitted[name] = value
    done = SAME
    if found != wanted:
        shared = min(found, wanted)
        rest = f"{wanted - shared} begin anew" if wanted > found else f"{found - shared} left out"
        done = f"first {shared} taken, {rest}"
    return Rule("upscale blocks", str(found), str(wanted), done)


def _block(name: str) -> int:
    return int(name.removeprefix(UPSCALE).split(".")[0])


def _name(header: ModelHeader) -> str:
    arch = header.architecture
    name = arch if isinstance(arch, str) else f"of {arch.get('embed_dims')} channels"
    return f"{header.family} {name}"
