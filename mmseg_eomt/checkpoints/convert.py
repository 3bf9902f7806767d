"""Turns checkpoints of other programs into ours, and ours into transformers'.

What a file is, is told by what is in it, never by its name. Nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmseg_eomt.checkpoints.backbone_weights import (
    BACKBONE_KEY,
    read_backbone,
    rename_backbone,
    save_backbone,
)
from mmseg_eomt.checkpoints.describe import load_classes
from mmseg_eomt.checkpoints.foreign.eomt import is_official_layout, read_official
from mmseg_eomt.checkpoints.foreign.foreign_model import ForeignModel, complete
from mmseg_eomt.checkpoints.foreign.hf import is_hf_eomt_layout, read_hf_eomt
from mmseg_eomt.checkpoints.foreign.hf_export import save_hf_folder
from mmseg_eomt.checkpoints.foreign.lightly import (
    SETTINGS,
    is_lightly_content,
    lightly_weights,
    read_lightly,
)
from mmseg_eomt.checkpoints.foreign.source_file import SourceFile, read_source
from mmseg_eomt.checkpoints.sharded import (
    is_sharded_folder,
    iterate_stored,
    read_stored_weights,
)
from mmseg_eomt.checkpoints.weights_file import Sized, in_order, save_weights, stream_weights
from mmseg_eomt.checkpoints.weights_file import read_weights as read_own
from mmseg_eomt.header import HEADER_KEY, ModelHeader
from mmseg_eomt.safe_write import replaced

PathLike = str | Path
HF_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        layout: What the source was recognised as.
        out: The file or folder that was written.
        header: The model; None for a backbone alone.
        notes: What the source did not say or could not be carried over exactly.
    """

    layout: str
    out: Path
    header: ModelHeader | None
    notes: tuple[str, ...] = ()


def convert_checkpoint(
    source: PathLike,
    out: PathLike,
    *,
    to: Literal["mmseg", "hf"] = "mmseg",
    base: PathLike | None = None,
    classes: str | None = None,
    image_size: int | None = None,
    force: bool = False,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: A file or folder: DINOv2 or DINOv3 of Meta, timm or transformers; EoMT of the
            official code, transformers or LightlyTrain; lean weights or a training checkpoint of
            mmseg_eomt, in shards too.
        out: For 'mmseg' a ``.safetensors`` file: lean weights for `load_model`, or, from a
            backbone alone, a file for ``backbone_weights``. For 'hf' a folder for transformers'
            ``from_pretrained``.
        to: 'mmseg' or 'hf'.
        base: The backbone that official DELTA weights are differences to.
        classes: Class names: 'ade20k', 'cityscapes', 'coco_stuff' or a file, see
            :func:`load_classes`. None takes those of the source.
        image_size: Side in pixels of the test images, where the source does not say it.
        force: Overwrite ``out``.

    Returns:
        What was converted.

    Raises:
        FileNotFoundError: If a file is missing.
        FileExistsError: If ``out`` exists, and not ``force``.
        ValueError: If the source is damaged, unknown, needs code to be read, or does not fit what
            it says. Nothing is written then.
    """
    if to not in ("mmseg", "hf"):
        raise ValueError(f"to is {to!r}: choose 'mmseg' or 'hf'.")
    target = _checked_target(Path(source).expanduser(), Path(out).expanduser(), to, force)
    names = None if classes is None else load_classes(classes)
    if is_sharded_folder(source):
        return _convert_shards(Path(source), target, to=to, classes=names, base=base)
    file = read_source(source)
    origin = str(file.path)
    by_id = {id(value): name for name, value in file.weights.items()}
    base_weights = None if base is None else read_source(base)
    own = _read_own(file)
    if own is not None:
        layout, header, state = own
        notes: list[str] = []
        if names is not None:
            header = header.replace(classes=names.names, class_ids=names.ids)
    else:
        found = _read_foreign(file, base_weights)
        if found is None:
            return _convert_backbone(file, target, to=to, by_id=by_id)
        header, state = complete(
            found, origin=origin, source_names=by_id, classes=names, image_size=image_size
        )
        layout, notes = found.layout, found.notes
    if base is not None and "delta" not in layout:
        raise ValueError(f"{origin}: {layout} takes no base; leave out --base.")
    if to == "hf":
        notes += _written(target, lambda path: save_hf_folder(path, header, state))
    else:
        save_weights(target, state, header)
    return Conversion(layout, target, header, tuple(notes))


def _convert_shards(
    source: Path, target: Path, *, to: str, classes: Any, base: PathLike | None
) -> Conversion:
    """A training checkpoint in shards; for 'mmseg' with one tensor in memory at a time."""
    if base is not None:
        raise ValueError(f"{source}: a checkpoint in shards takes no base; leave out --base.")
    layout = "training checkpoint of mmseg_eomt in shards"
    header, stored, rest = read_stored_weights(source)
    if classes is not None:
        header = header.replace(classes=classes.names, class_ids=classes.ids)
    if to == "hf":
        read = iterate_stored(source, list(stored.values()))
        state = {**rest, **dict(zip(stored, read, strict=True))}
        notes = _written(target, lambda path: save_hf_folder(path, header, state))
        return Conversion(layout, target, header, tuple(notes))
    sizes: dict[str, Sized] = {**rest, **stored}

    def values() -> Iterator[Tensor]:
        for name in in_order(sizes):
            if name in rest:
                yield rest[name]
            else:
                yield from iterate_stored(source, [stored[name]])

    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as file:
        stream_weights(
            file, sizes, values(), metadata={"format": "pt", HEADER_KEY: header.to_json()}
        )
    return Conversion(layout, target, header)


def _read_own(file: SourceFile) -> tuple[str, ModelHeader, dict[str, Tensor]] | None:
    if file.metadata.get(HEADER_KEY) is not None:
        return "lean weights of mmseg_eomt", *read_own(file.path)
    if isinstance(file.content, Mapping) and HEADER_KEY in file.content:
        return "training checkpoint of mmseg_eomt", *read_own(file.path)
    if any(name.startswith("decode_head.") for name in file.weights):
        raise ValueError(
            f"{file.path}: weights of a segmentor of MMSegmentation without the header of "
            f"mmseg_eomt ({HEADER_KEY!r}), so its sizes and classes are not known. Convert "
            "exported/*.safetensors, or a checkpoint that a run of mmseg_eomt wrote."
        )
    return None


def _read_foreign(file: SourceFile, base: SourceFile | None) -> ForeignModel | None:
    """The EoMT in a file; None where it is a backbone alone."""
    origin = str(file.path)
    if is_lightly_content(file.content):
        weights = lightly_weights(file.content, origin=origin)
        return read_lightly(weights, file.content[SETTINGS], origin=origin)
    if is_official_layout(file.weights):
        added = None
        if base is not None:
            _, added = rename_backbone(base.weights, origin=str(base.path))
        return read_official(file.weights, origin=origin, base=added)
    if is_hf_eomt_layout(file.weights):
        return read_hf_eomt(
            file.weights, config=file.config, processor=file.processor, origin=origin
        )
    if base is not None:
        raise ValueError(f"{origin}: no delta weights of the official EoMT; leave out --base.")
    return None


def _convert_backbone(
    file: SourceFile, target: Path, *, to: str, by_id: Mapping[int, str]
) -> Conversion:
    if BACKBONE_KEY in file.metadata:
        raise ValueError(f"{file.path}: is converted already: give it as backbone_weights.")
    layout, sizes, weights = read_backbone(file.weights, origin=str(file.path), source_names=by_id)
    if to == "hf":
        raise ValueError(
            f"{file.path}: a backbone alone ({layout}, {sizes.family}), which is no EoMT: only "
            "trained models can become a folder of transformers."
        )
    _written(target, lambda path: save_backbone(path, weights, sizes))
    name = sizes.architecture if isinstance(sizes.architecture, str) else "unknown sizes"
    return Conversion(
        f"backbone of {layout}, {sizes.family}/{name}",
        target,
        None,
        (
            "A backbone alone has no class head: give the file as backbone_weights "
            "(--backbone-weights), not to load_model.",
        ),
    )


def _checked_target(source: Path, target: Path, to: str, force: bool) -> Path:
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: is the source itself; give another place for the result.")
    if not target.exists():
        return target
    if not force:
        raise FileExistsError(f"{target}: exists already; give --force to overwrite it.")
    if (to == "hf") != target.is_dir():
        raise ValueError(f"{target}: is no {'folder' if to == 'hf' else 'file'}; remove it first.")
    strange = [p.name for p in target.iterdir() if p.name not in HF_FILES] if to == "hf" else []
    if strange:
        raise ValueError(
            f"{target}: holds {', '.join(sorted(strange)[:8])} beside what is written there, and "
            "would be replaced as a whole; give an empty place."
        )
    return target


def _written(target: Path, write: Callable[[Path], Any]) -> Any:
    """Writes beside the target and renames when all is there; leaves nothing behind otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        result = write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        for path in (temporary, *temporary.glob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if target.is_dir():
            target.rename(old)
        os.replace(temporary, target)
        return result
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
        if old.is_dir():
            with contextlib.suppress(OSError):
                shutil.rmtree(old) if target.is_dir() else old.rename(target)


def describe(conversion: Conversion) -> str:
    """A paragraph for people."""
    lines = [f"{conversion.out}: from {conversion.layout}."]
    header = conversion.header
    if header is not None:
        name = header.architecture
        sizes = name if isinstance(name, str) else json.dumps(name)
        lines.append(
            f"{header.family}/{sizes}, {header.num_classes} classes, {header.num_queries} queries, "
            f"{header.num_joint_blocks} joint blocks, patch {header.patch_size}, "
            f"image {header.test_size or header.image_size}."
        )
    return "\n".join([*lines, *(f"Note: {note}" for note in conversion.notes)])
