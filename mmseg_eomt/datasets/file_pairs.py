"""Images and masks of folders and templates, as pairs.

``images`` and ``masks`` are each a folder, or ``FOLDER/NAME`` where NAME holds ``{stem}`` once,
such as ``masks/{stem}_label.png``. An image and its mask lie in the same subfolder below the two
FOLDERs and have the same stem. NAME without a suffix (``masks/{stem}_label``) takes any suffix
that is allowed; one with a suffix takes that one, in capitals too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmseg_eomt.datasets.data_classes import is_list, plain
from mmseg_eomt.images.reading import (
    IMAGE_SUFFIXES,
    MASK_SUFFIX,
    MASK_SUFFIXES,
    image_size,
)

STEM = "{stem}"
_FORM = "write {images: FOLDER, masks: FOLDER} or a list of such pairs"


@dataclass(frozen=True)
class ImageMaskFolders:
    """A folder of images and the folder of their masks.

    Attributes:
        images (Path): Folder of the images, subfolders included.
        masks (Path): Folder of the masks.
        image_name (str): Template of the images' file names. Defaults to ``'{stem}'``: all images.
        mask_name (str): Template of the masks' file names. Defaults to ``'{stem}'``.
    """

    images: Path
    masks: Path
    image_name: str = STEM
    mask_name: str = STEM

    def as_dict(self) -> dict[str, str]:
        """What the user could have written, with these paths."""
        return {
            "images": _joined(self.images, self.image_name),
            "masks": _joined(self.masks, self.mask_name),
        }


def parse_split(value: Any, where: str, base: Path) -> tuple[ImageMaskFolders, ...]:
    """Reads one split.

    Args:
        value (dict | list[dict]): What the user wrote.
        where (str): File and key, named in errors.
        base (Path): Folder that relative paths count from.

    Raises:
        ValueError: If it is of another form, or a template is wrong.
    """
    pairs = list(value) if is_list(value) else [value]
    result = []
    for position, pair in enumerate(pairs):
        place = f"{where}[{position}]" if len(pairs) > 1 else where
        if not isinstance(pair, Mapping) or set(pair) != {"images", "masks"}:
            raise ValueError(f"{place}: found {plain(pair)!r}; {_FORM}.")
        images, image_name = _folder(pair["images"], f"{place}.images", base)
        masks, mask_name = _folder(pair["masks"], f"{place}.masks", base)
        result.append(ImageMaskFolders(images, masks, image_name, mask_name))
    if len(set(result)) < len(result):
        raise ValueError(f"{where}: the same pair of folders is given twice. Remove one.")
    return tuple(result)


def check_folders(
    wanted: Sequence[str] | Mapping[str, Any],
    splits: Mapping[str, tuple[ImageMaskFolders, ...]],
    name: str,
) -> None:
    """Checks that the folders of the splits ``wanted`` exist.

    Raises:
        FileNotFoundError: Names the split, the key and the folder.
    """
    for split in wanted:
        for pair in splits.get(split, ()):
            for key, folder in (("images", pair.images), ("masks", pair.masks)):
                if not folder.is_dir():
                    found = "is a file, not a folder" if folder.exists() else "does not exist"
                    raise FileNotFoundError(
                        f"{name}: {split}.{key}: {folder} {found}. Correct the path; relative "
                        "paths count from the folder of the data file, or from the working "
                        "directory for a dict."
                    )


def _folder(value: Any, where: str, base: Path) -> tuple[Path, str]:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"{where}: {value!r} is not the path of a folder; {_FORM}.")
    path = base / Path(str(value)).expanduser()
    # A folder may really be called so.
    if path.is_dir() or not ("{" in str(value) or "}" in str(value)):
        return path, STEM
    if path.name.count(STEM) == 1 and not set("{}") & set(str(path).replace(STEM, "")):
        return path.parent, path.name
    raise ValueError(
        f"{where}: {str(value)!r} is no template; write FOLDER/NAME, where NAME, the part behind "
        f"the last slash, holds {STEM} once and there are no other braces, such as "
        "'masks/{stem}_label.png'. Subfolders are searched, and kept in the pairing."
    )


def _joined(folder: Path, name: str) -> str:
    return str(folder if name == STEM else folder / name)


_SHOWN = 5
_THREADS = 8  # headers are waited for, not computed


class FilePair(NamedTuple):
    """An image and its mask."""

    image: str
    mask: str


def find_pairs(folders: ImageMaskFolders) -> list[FilePair]:
    """Pairs the images of a folder, nested ones included, with the masks of equal stem.

    Args:
        folders (ImageMaskFolders): Where to look, and the templates of the file names.

    Returns:
        list[FilePair]: Sorted by name.

    Raises:
        FileNotFoundError: If there is no image, or an image or a mask lacks its partner.
        ValueError: If two images or two masks have the same stem.
    """
    masks, other_masks = find_masks(folders)
    images, other_images = find_images(folders, masks)
    if not images:
        found = f"; it holds {_suffixes(other_images)}" if other_images else "; it is empty"
        named = "" if folders.image_name == STEM else f" named {folders.image_name}"
        raise FileNotFoundError(
            f"{folders.images}: no images{named}{found}. Images end in "
            f"{', '.join(IMAGE_SUFFIXES)}. Correct the path or convert the files."
        )
    # In a folder that holds images and masks side by side every PNG mask is an image, too.
    _refuse_twins(images, folders.images, "images", "so their mask is not unique")
    _refuse_twins(masks, folders.masks, "masks", "so it is not clear which one counts")
    without_mask = [paths[0] for stem, paths in images.items() if stem not in masks]
    if without_mask:
        hint = ""
        if other_masks:
            hint = f" The folder also holds {_suffixes(other_masks)}, but masks must be PNG or TIFF"
            hint += "." if folders.mask_name == STEM else f" and named {folders.mask_name}."
        wanted = folders.mask_name
        if os.path.splitext(wanted)[1].lower() not in MASK_SUFFIXES:
            wanted += MASK_SUFFIX
        raise FileNotFoundError(
            f"{len(without_mask)} of {len(images)} images in {folders.images} have no mask "
            f"{wanted} in {folders.masks}: {_list(without_mask, folders.images)}."
            f"{hint} Add the masks or remove the images."
        )
    without_image = [paths[0] for stem, paths in masks.items() if stem not in images]
    if without_image:
        raise FileNotFoundError(
            f"{len(without_image)} of {len(masks)} masks in {folders.masks} have no image of the "
            f"same stem in {folders.images}: {_list(without_image, folders.masks)}. Add the "
            "images or remove the masks."
        )
    return [FilePair(images[stem][0], masks[stem][0]) for stem in sorted(images)]


def find_masks(folders: ImageMaskFolders) -> tuple[dict[str, list[str]], list[str]]:
    """The masks by subfolder and stem, and the other files of their folder."""
    return _by_stem(folders.masks, MASK_SUFFIXES, folders.mask_name)


def find_images(
    folders: ImageMaskFolders, masks: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """The images by subfolder and stem, and the other files of their folder.

    A file that the template of the masks names is no image.

    Args:
        folders (ImageMaskFolders): Where to look.
        masks (Mapping): Of `find_masks`.
    """
    taken: set[str] = set()
    if folders.mask_name != STEM:
        taken = {os.path.abspath(path) for paths in masks.values() for path in paths}
    return _by_stem(folders.images, IMAGE_SUFFIXES, folders.image_name, taken)


def check_headers(pairs: Sequence[FilePair]) -> None:
    """Compares the sizes of images and masks by their headers; no pixel is decoded.

    Raises:
        ValueError: If a file is unreadable or sizes differ; lists up to 5 files and the count.
    """
    faults = [fault for fault in header_faults(pairs) if fault]
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(
            f"{len(faults)} of {len(pairs)} pairs of image and mask cannot be used:\n"
            + "\n".join(faults[:_SHOWN])
            + more
        )


def header_faults(pairs: Sequence[FilePair]) -> list[str]:
    """What the headers of each pair show to be wrong; empty for a pair that fits."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_header_fault, pairs))


def every_nth(pairs: Sequence[FilePair], count: int) -> list[FilePair]:
    """At most ``count`` pairs, spread evenly."""
    count = min(count, len(pairs))
    return [pairs[position * len(pairs) // count] for position in range(count)]


def collect_faults(check: Callable[[FilePair], None], pairs: Iterable[FilePair]) -> list[str]:
    """The messages of the `ValueError` and `OSError` that ``check`` raises."""
    faults = []
    for pair in pairs:
        try:
            check(pair)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    return faults


def _header_fault(pair: FilePair) -> str:
    try:
        image, mask = image_size(pair.image), image_size(pair.mask)
    except (ValueError, OSError) as error:
        return str(error)
    if image == mask:
        return ""
    hint = ""
    if image == mask[::-1]:
        hint = " (width and height exchanged: does the image carry an EXIF orientation?)"
    return (
        f"{pair.mask}: the mask is {mask[0]}x{mask[1]} (width x height) but its image "
        f"{pair.image} is {image[0]}x{image[1]}{hint}. They must be equal: resize the mask "
        "with nearest neighbour, or pair the right files."
    )


def _by_stem(
    folder: Path, suffixes: Sequence[str], name: str, taken: Collection[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """Files by their subfolder and stem, and those that the template ``name`` does not fit.

    The template is compared with names alone, so it holds in every subfolder.
    """
    chosen: dict[str, list[str]] = {}
    others = []
    pattern = _pattern(name, suffixes)
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(os.path.relpath(parent, folder))
        for file_name in sorted(names):
            if file_name.startswith("."):  # .DS_Store, ._shadow files of macOS
                continue
            path = os.path.join(parent, file_name)
            match = pattern.fullmatch(file_name)
            if match is None:
                others.append(path)
            elif not taken or os.path.abspath(path) not in taken:
                chosen.setdefault((below / match["stem"]).as_posix(), []).append(path)
    return chosen, others


def _pattern(name: str, suffixes: Sequence[str]) -> re.Pattern[str]:
    """File names that fit a template; the suffix counts without regard to capitals."""
    base, suffix = os.path.splitext(name)
    if suffix.lower() in suffixes:
        allowed = re.escape(suffix)
    else:
        base, allowed = name, "|".join(map(re.escape, suffixes))
    before, after = map(re.escape, base.split(STEM))
    return re.compile(rf"{before}(?P<stem>.+){after}(?i:{allowed})", re.DOTALL)


def _refuse_twins(files: Mapping[str, list[str]], folder: Path, what: str, why: str) -> None:
    for stem, paths in files.items():
        if len(paths) > 1:
            raise ValueError(
                f"{folder}: {len(paths)} {what} have the stem {stem!r} "
                f"({', '.join(os.path.basename(path) for path in paths)}), {why}. Rename or "
                "remove all but one."
            )


def _list(paths: Sequence[str], folder: Path) -> str:
    names = [os.path.relpath(path, folder) for path in paths[:_SHOWN]]
    more = f", ... ({len(paths)} in all)" if len(paths) > _SHOWN else ""
    return ", ".join(names) + more


def _suffixes(paths: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for path in paths:
        suffix = os.path.splitext(path)[1] or "no suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    return ", ".join(f"{count} files with {suffix}" for suffix, count in sorted(counts.items()))
