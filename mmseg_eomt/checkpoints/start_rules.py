"""Rules by which the weights of one task fit the model of another, each said in words.

The rules work on tensors of the 'meta' device too: then they are a check and a description, made
before anything is built that takes time.

Shape legend: Q queries, C channels of a token, K classes, N = h * w patches, p side of a patch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from mmseg_eomt.checkpoints.backbone_weights import fit_channels
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


CLASS_HEAD = "decode_head.class_head."
BY_NAME = "by_name"
REUSE = (False, True, BY_NAME)


@dataclass(frozen=True)
class ClassRow:
    """Where the class head's row of one class comes from.

    Attributes:
        name: Of the class in the new task; None is "no object".
        source: Row of the file's class head; None where it begins anew.
        hint: What a reader might have expected instead, or ''.
    """

    name: str | None
    source: int | None
    hint: str = ""


def check_reuse(value: Any) -> None:
    """Check the value of `reuse_class_head`.

    Raises:
        ValueError: If it is none of `REUSE`.
    """
    if not isinstance(value, (bool, str)) or value not in REUSE:
        raise ValueError(
            f"reuse_class_head is {value!r}; allowed: False (start anew), True (same classes) or "
            f"'{BY_NAME}' (row by row)."
        )


def fit_class_head(
    fitted: dict[str, Tensor],
    own: dict[str, Tensor],
    *,
    found: list[str],
    wanted: list[str],
    reuse: bool | str,
    source: Any,
) -> tuple[str, list[ClassRow]]:
    """Put a class head into `fitted` that fits the model.

    Args:
        fitted: Tensors of the file by name; those of the class head are replaced.
        own: Tensors of the model: weight ``[K + 1, C]`` and bias ``[K + 1]``, "no object" last.
        found: Classes of the file.
        wanted: Classes of the new task.
        reuse: One of `REUSE`.
        source: Name of the file for error messages.

    Returns:
        The rule in words, and with 'by_name' one row per class and one for "no object".

    Raises:
        ValueError: If `reuse` is True and the classes differ, or 'by_name' and a name is not
            unique.
    """
    check_reuse(reuse)
    if reuse is True:
        check_same(found, wanted, source)
        return "taken over", []
    names = [name for name in own if name.startswith(CLASS_HEAD)]
    if reuse is False:
        fitted.update({name: own[name] for name in names})
        return "begins anew (reuse_class_head=False)", []
    rows = match_classes(found, wanted, source)
    target = [index for index, row in enumerate(rows) if row.source is not None]
    origin = [row.source for row in rows if row.source is not None]
    for name in names:
        theirs, merged = fitted.get(name), own[name].detach().clone()
        if theirs is None or theirs.shape[1:] != merged.shape[1:] or len(theirs) <= len(found):
            continue  # a strict load names it
        merged[target] = theirs[origin].to(merged)
        fitted[name] = merged
    kept = len(target) - 1
    return (
        f"by name: {kept} of {len(wanted)} classes keep their rows, {len(wanted) - kept} begin "
        f"anew, 'no object' is kept, {len(found) - kept} of the file are left out",
        rows,
    )


def match_classes(found: list[str], wanted: list[str], source: Any) -> list[ClassRow]:
    """Match classes by exact name; space around a name does not count.

    Returns:
        One row per class in the order of `wanted`, and one for "no object".

    Raises:
        ValueError: If a name is there twice in the file or in the new task.
    """
    theirs, ours = ([name.strip() for name in names] for names in (found, wanted))
    for names, place in ((theirs, f"{source}: the file"), (ours, f"{source}: the dataset")):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{place} has more than one class named {_listed(twice)}, so classes cannot be "
                "matched by name. Rename them, or leave reuse_class_head=False."
            )
    places = {name: index for index, name in enumerate(theirs)}
    folded: dict[str, list[str]] = {}
    for name in theirs:
        if name not in ours:
            folded.setdefault(name.casefold(), []).append(name)
    rows = []
    for name in ours:
        similar = folded.get(name.casefold(), []) if name not in places else []
        hint = f"the file has {_listed(similar)}: not the same name" if similar else ""
        rows.append(ClassRow(name=name, source=places.get(name), hint=hint))
    return [*rows, ClassRow(name=None, source=len(found))]


def check_same(found: list[str], wanted: list[str], source: Any) -> None:
    """Check that classes are the same in the same order.

    Raises:
        ValueError: If not; the message names those that differ.
    """
    theirs, ours = ([name.strip() for name in names] for names in (found, wanted))
    if theirs == ours:
        return
    parts = []
    for title, names, others in (
        ("only in the file", theirs, ours),
        ("only in the dataset", ours, theirs),
    ):
        extra = [name for name in names if name not in others]
        if extra:
            parts.append(f"{title}: {_listed(extra)}")
    if not parts:
        moved = [f"{a!r} / {b!r}" for a, b in zip(theirs, ours, strict=False) if a != b]
        parts.append(f"another order (file / dataset): {', '.join(moved) or 'repeated names'}")
    raise ValueError(
        f"{source}: reuse_class_head=True needs the same classes in the same order. "
        f"{'; '.join(parts)}. reuse_class_head='{BY_NAME}' takes classes of the same name over "
        "and starts the others anew; False starts the whole class head anew."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
