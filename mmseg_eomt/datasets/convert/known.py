"""Pascal VOC, ADE20K, Cityscapes and COCO-Stuff folders: verified, and described as data files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mmseg_eomt.datasets.convert.annotations import files_by_stem, images_by_stem
from mmseg_eomt.datasets.convert.output import (
    Report,
    link,
    new_folder,
    progress,
    relative,
    write_data_file,
)
from mmseg_eomt.datasets.label_table import IGNORED, LabelTable
from mmseg_eomt.images.reading import image_size, read_mask

_SHOWN = 5
_THREADS = 4


class _Pair(NamedTuple):
    stem: str
    image: Path
    mask: Path


class _Layout(NamedTuple):
    """A split as it lies on disk; ``direct`` if a data file can name its folders as they are."""

    images: Path
    masks: Path
    pairs: list[_Pair]
    direct: bool


class _Known(NamedTuple):
    """Classes by id with their mask values, unlabelled values, colours and splits."""

    classes: dict[int, dict[str, Any]]
    ignore: list[int]
    palette: list[list[int]]
    splits: dict[str, _Layout]


def describe_known(
    name: str, root: Path, out: Path, *, force: bool = False, copy_images: bool = False
) -> Report:
    """Verifies a well-known dataset, every image header and every mask, and describes it.

    Where images and masks are not in folders of equal stems (VOC's lists, the name endings of
    Cityscapes), ``OUT`` gets folders of links.

    Args:
        name (str): ``'voc'``, ``'ade20k'``, ``'cityscapes'`` or ``'coco-stuff'``.
        root (Path): Its folder as published.
        out (Path): Folder to make.
        force (bool): See `write_dataset`. Defaults to False.
        copy_images (bool): Copies in place of links. Defaults to False.

    Raises:
        FileNotFoundError: If a folder, an image or a mask is missing.
        ValueError: If a file is unreadable, or a mask has a value or a size it must not have.
    """
    if name not in KNOWN:
        raise ValueError(f"{name!r}: unknown dataset; allowed are {', '.join(KNOWN)}.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Give the folder of {name}.")
    known = KNOWN[name](root)
    report = Report(
        out / "data.yaml",
        {split: len(layout.pairs) for split, layout in known.splits.items()},
        {class_id: entry["name"] for class_id, entry in known.classes.items()},
    )
    # Checked before anything is written.
    mapping = {v: i for i, entry in known.classes.items() for v in entry["labels"]}
    table = LabelTable({**mapping, **dict.fromkeys(known.ignore, IGNORED)}, source=name)
    for split, layout in known.splits.items():
        _verify(layout.pairs, table, split)
    sources = [layout.masks for layout in known.splits.values()]
    sources += [layout.images for layout in known.splits.values()]
    with new_folder(out, force=force, sources=sources) as new:
        folders = {}
        for split, layout in known.splits.items():
            direct = layout.direct and not copy_images
            if not direct:
                for pair in layout.pairs:
                    image = f"{split}/images/{pair.stem}{pair.image.suffix}"
                    link(pair.image, new / image, copy=copy_images)
                    link(pair.mask, new / f"{split}/masks/{pair.stem}.png", copy=copy_images)
            folders[split] = {
                "images": relative(layout.images, new) if direct else f"{split}/images",
                "masks": relative(layout.masks, new) if direct else f"{split}/masks",
            }
        write_data_file(
            new / "data.yaml",
            folders,
            classes=known.classes,
            ignore_index=known.ignore,
            palette=known.palette,
        )
    return report


def _verify(pairs: list[_Pair], table: LabelTable, split: str) -> None:
    def fault(pair: _Pair) -> str:
        try:
            mask = read_mask(str(pair.mask))
            table(mask, str(pair.mask))
            width, height = image_size(str(pair.image))
        except (ValueError, OSError) as error:
            return str(error)
        if (height, width) == mask.shape:
            return ""
        return (
            f"{pair.mask}: is {mask.shape[1]}x{mask.shape[0]} (width x height), its image "
            f"{pair.image} is {width}x{height}. Unpack the dataset again."
        )

    with ThreadPoolExecutor(_THREADS) as pool:
        checked = progress(pool.map(fault, pairs), f"{split}: verified", total=len(pairs))
        faults = [text for text in checked if text]
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(
            f"{len(faults)} of {len(pairs)} pairs of {split} are wrong:\n"
            + "\n".join(faults[:_SHOWN])
            + more
        )


def _pairs(
    images: Path, masks: Path, *, image_end: str = "", mask_end: str = ""
) -> Iterator[_Pair]:
    """Pairs of a folder of images and one of masks, by stems without their endings."""
    found = files_by_stem(masks, (".png",))
    for stem, paths in images_by_stem(images).items():
        if not stem.endswith(image_end):
            raise ValueError(f"{paths[0]}: its name does not end in {image_end}. Remove it.")
        name = stem.removesuffix(image_end)
        mask = found.get(name + mask_end)
        if mask is None:
            raise FileNotFoundError(
                f"{paths[0]}: its mask {masks / (name + mask_end)}.png does not exist. Unpack the "
                "annotations again."
            )
        yield _Pair(name, paths[0], mask[0])


def _layouts(
    root: Path,
    folders: Mapping[str, tuple[str, str]],
    *,
    image_end: str = "",
    mask_end: str = "",
) -> dict[str, _Layout]:
    result = {}
    for split, (image_folder, mask_folder) in folders.items():
        images, masks = root / image_folder, root / mask_folder
        pairs = list(_pairs(images, masks, image_end=image_end, mask_end=mask_end))
        if not pairs:
            raise FileNotFoundError(f"{images}: no images. Unpack the dataset again.")
        alone = len(files_by_stem(masks, (".png",))) == len(pairs)
        direct = alone and image_end == mask_end == ""
        result[split] = _Layout(images, masks, pairs, direct)
    return result


def _metainfo(dataset: str) -> tuple[Sequence[str], Any]:
    """Class names and palette that mmseg has for a dataset."""
    from mmseg import datasets

    metainfo = getattr(datasets, dataset).METAINFO
    return metainfo["classes"], metainfo["palette"]


def _named(names: Sequence[str], labels: Mapping[int, int]) -> dict[int, Any]:
    """Classes of a dataset of mmseg: its position gets the id and mask value of ``labels``."""
    return {i: {"name": names[n], "labels": [v]} for n, (i, v) in enumerate(labels.items())}


def _voc(root: Path) -> _Known:
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    splits = {}
    for split in ("train", "val"):
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(
                f"{listed}: no such file. Give the folder that holds JPEGImages, such as "
                "VOCdevkit/VOC2012."
            )
        pairs = [
            _Pair(stem, images / f"{stem}.jpg", masks / f"{stem}.png")
            for stem in listed.read_text(encoding="utf-8").split()
        ]
        missing = [p for pair in pairs for p in (pair.image, pair.mask) if not p.is_file()]
        if missing or not pairs:
            found = (
                f"{len(missing)} files it lists do not exist, first {missing[0]}" if missing else ""
            )
            raise FileNotFoundError(f"{listed}: {found or 'is empty'}. Unpack the dataset again.")
        splits[split] = _Layout(images, masks, pairs, direct=False)
    names, palette = _metainfo("PascalVOCDataset")
    classes = _named(names, {i: i for i in range(21)})
    return _Known(classes, [255], palette, splits)


def _ade20k(root: Path) -> _Known:
    splits = _layouts(
        root,
        {
            "train": ("images/training", "annotations/training"),
            "val": ("images/validation", "annotations/validation"),
        },
    )
    # 0 means "other objects" and is not evaluated.
    names, palette = _metainfo("ADE20KDataset")
    classes = _named(names, {i: i for i in range(1, 151)})
    return _Known(classes, [0, 255], palette, splits)


# labelIds of the 19 classes that are evaluated, by train id. Source: labels.py of
# mcordts/cityscapesScripts.
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _cityscapes(root: Path) -> _Known:
    splits = _layouts(
        root,
        {split: (f"leftImg8bit/{split}", f"gtFine/{split}") for split in ("train", "val")},
        image_end="_leftImg8bit",
        mask_end="_gtFine_labelIds",
    )
    names, palette = _metainfo("CityscapesDataset")
    classes = _named(names, dict(enumerate(_CITYSCAPES)))
    others = [value for value in range(34) if value not in _CITYSCAPES]
    return _Known(classes, [*others, 255], palette, splits)


# Numbers of 0 to 181 that name no class. Source: labels.txt of nightrome/cocostuff (there from 1).
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


def _coco_stuff(root: Path) -> _Known:
    folders = {
        split: (f"images/{name}", f"annotations/{name}")
        for split, name in (("train", "train2017"), ("val", "val2017"))
    }
    prepared = any(
        next((root / masks).glob("*_labelTrainIds.png"), None) for _, masks in folders.values()
    )
    if prepared:  # mmseg's preparation put these beside the published maps
        splits = _layouts(root, folders, mask_end="_labelTrainIds")
        labels = {i: i for i in range(171)}
    else:
        splits = _layouts(root, folders)
        labels = {i: i for i in range(182) if i not in _COCO_GAPS}
    names, palette = _metainfo("COCOStuffDataset")
    classes = _named(names, labels)
    return _Known(classes, [255], palette, splits)


KNOWN: dict[str, Callable[[Path], _Known]] = {
    "voc": _voc,
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "coco-stuff": _coco_stuff,
}
