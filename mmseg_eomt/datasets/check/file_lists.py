"""Every pair of a split, and every file that has no partner, without stopping at the first fault.

`find_pairs` is what training uses and decides; only where it refuses a folder are the files
listed here, to name all of them and to go on with the pairs that are left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.datasets.check.findings import (
    ERROR,
    NOTE,
    FileNote,
    Finding,
    counted,
)
from mmseg_eomt.datasets.file_pairs import FilePair, ImageMaskFolders, find_pairs
from mmseg_eomt.errors import shorten
from mmseg_eomt.images.reading import IMAGE_SUFFIXES, MASK_SUFFIXES

_STEM = "{stem}"


def list_pairs(
    folders: Sequence[ImageMaskFolders], split: str
) -> tuple[list[FilePair], list[Finding]]:
    """Pairs and faults of the folders of a split.

    Args:
        folders (Sequence[ImageMaskFolders]): Of the split.
        split (str): Its name.

    Returns:
        tuple: The pairs that can be read, and the findings.
    """
    pairs: list[FilePair] = []
    findings: list[Finding] = []
    for one in folders:
        missing = [
            _missing_folder(split, key, folder)
            for key, folder in (("images", one.images), ("masks", one.masks))
            if not folder.is_dir()
        ]
        if missing:
            findings += missing
            continue
        if one.images.resolve() == one.masks.resolve():
            findings.append(
                Finding(
                    NOTE,
                    "same_folder",
                    split,
                    f"images and masks are both looked for in {one.images}.",
                )
            )
        try:
            pairs += find_pairs(one)
        except (ValueError, OSError) as error:
            left, found = _list_faults(one, split)
            pairs += left
            findings += found or [Finding(ERROR, "files", split, str(error))]
        else:
            findings += _stray_files(one, split)
    return pairs, findings


def _list_faults(folders: ImageMaskFolders, split: str) -> tuple[list[FilePair], list[Finding]]:
    images, other_images = _images(folders)
    masks, other_masks = _masks(folders)
    findings = []
    if not images:
        what = _suffixes(other_images) or "no files"
        findings.append(
            Finding(
                ERROR,
                "empty_folder",
                split,
                f"{folders.images} holds no images but {what}. Images end in "
                f"{', '.join(IMAGE_SUFFIXES)}: correct the path or convert the files.",
            )
        )
    twice = {stem: paths for stem, paths in images.items() if len(paths) > 1}
    if twice:
        notes = [FileNote(path) for paths in twice.values() for path in paths]
        findings.append(
            Finding(
                ERROR,
                "ambiguous_stem",
                split,
                f"{counted(len(twice), 'stem belongs', 'stems belong')} to several images, so "
                "their mask is not unique. Rename or remove all but one of each.",
                tuple(notes),
            )
        )
    no_mask = {stem: paths[0] for stem, paths in images.items() if stem not in masks}
    no_image = {stem: paths[0] for stem, paths in masks.items() if stem not in images}
    if no_mask:
        hint = _mask_hint(no_mask, no_image, other_masks)
        findings.append(
            Finding(
                ERROR,
                "image_without_mask",
                split,
                f"{len(no_mask)} of {counted(len(images), 'image')} in {folders.images} "
                f"{'has' if len(no_mask) == 1 else 'have'} no mask of the same stem in "
                f"{folders.masks}.{hint} Add the masks or remove the images.",
                tuple(FileNote(path) for path in no_mask.values()),
            )
        )
    if no_image and images:
        findings.append(
            Finding(
                ERROR,
                "mask_without_image",
                split,
                f"{len(no_image)} of {counted(len(masks), 'mask')} in {folders.masks} "
                f"{'has' if len(no_image) == 1 else 'have'} no image of the same stem in "
                f"{folders.images}. Add the images or remove the masks.",
                tuple(FileNote(path) for path in no_image.values()),
            )
        )
    left = [FilePair(images[stem][0], masks[stem][0]) for stem in sorted(images) if stem in masks]
    return left, findings


def _mask_hint(
    no_mask: dict[str, str], no_image: dict[str, str], other_masks: Sequence[str]
) -> str:
    """What the names of the masks say about why they were not found."""
    folded = {stem.casefold(): stem for stem in no_image}
    cases = [(stem, folded[stem.casefold()]) for stem in no_mask if stem.casefold() in folded]
    if cases:
        return f" Names differ in case: {cases[0][0]} and {cases[0][1]}."
    stripped = [(stem, stem.strip()) for stem in [*no_mask, *no_image] if stem != stem.strip()]
    if stripped:
        return f" A name begins or ends with a space: {stripped[0][0]!r}."
    for stem in list(no_mask)[:20]:
        longer = [other for other in no_image if other.startswith(stem) and other != stem]
        if len(longer) == 1:
            return (
                f" Is {longer[0]} the mask of {stem}? Then every mask ends in "
                f"{longer[0][len(stem) :]!r}: rename them, or say so in the data file."
            )
        flat = [other for other in no_image if os.path.basename(other) == os.path.basename(stem)]
        if flat:
            return (
                f" Images and masks are nested differently: {stem} and {flat[0]}. Both must lie "
                "in the same sub-folder."
            )
    wanted = {os.path.basename(stem) for stem in no_mask}
    same = [p for p in other_masks if os.path.splitext(os.path.basename(p))[0] in wanted]
    if same:
        return (
            f" The folder holds {_suffixes(same)} of the same stems, but masks end in "
            f"{', '.join(MASK_SUFFIXES)}: convert them (a JPEG has lost its class "
            "ids: export the masks again)."
        )
    return ""


def _stray_files(folders: ImageMaskFolders, split: str) -> list[Finding]:
    found = []
    for folder, listed in ((folders.images, _images), (folders.masks, _masks)):
        others = [p for p in listed(folders)[1] if not _is_beside(p, folders)]
        if others:
            found.append(
                Finding(
                    NOTE,
                    "other_files",
                    split,
                    f"{counted(len(others), 'file')} in {folder} ({_suffixes(others)}) "
                    f"{'is' if len(others) == 1 else 'are'} not read.",
                    tuple(FileNote(path) for path in others),
                )
            )
    return found


def _is_beside(path: str, folders: ImageMaskFolders) -> bool:
    """Whether it is an image or mask of a folder that holds both side by side."""
    if os.path.splitext(path)[1].lower() not in (*IMAGE_SUFFIXES, *MASK_SUFFIXES):
        return False
    images, masks = folders.images.resolve(), folders.masks.resolve()
    return images.is_relative_to(masks) or masks.is_relative_to(images)


def _missing_folder(split: str, key: str, folder: Path) -> Finding:
    state = "is a file, not a folder" if folder.exists() else "does not exist"
    return Finding(
        ERROR,
        "missing_folder",
        split,
        f"{key}: {folder} {state}. Correct the path; relative paths count from the folder of the "
        "data file.",
    )


def _images(folders: ImageMaskFolders) -> tuple[dict[str, list[str]], list[str]]:
    return _by_stem(folders.images, IMAGE_SUFFIXES, getattr(folders, "image_name", _STEM))


def _masks(folders: ImageMaskFolders) -> tuple[dict[str, list[str]], list[str]]:
    return _by_stem(folders.masks, MASK_SUFFIXES, getattr(folders, "mask_name", _STEM))


def _by_stem(
    folder: Path, suffixes: Sequence[str], template: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Files by their path below ``folder`` without what the template adds, and all others."""
    before, after = template.split(_STEM)
    after, wanted = os.path.splitext(after)
    chosen: dict[str, list[str]] = {}
    others = []
    for parent, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):  # .DS_Store, ._shadow files of macOS
                continue
            path = os.path.join(parent, name)
            stem, suffix = os.path.splitext(name)
            fits = suffix.lower() in suffixes and wanted.lower() in ("", suffix.lower())
            long_enough = len(stem) > len(before) + len(after)
            if fits and long_enough and stem.startswith(before) and stem.endswith(after):
                stem = stem[len(before) : len(stem) - len(after)]
                key = Path(os.path.relpath(os.path.join(parent, stem), folder)).as_posix()
                chosen.setdefault(key, []).append(path)
            else:
                others.append(path)
    return chosen, others


def _suffixes(paths: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for path in paths:
        suffix = os.path.splitext(path)[1] or "no suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    return shorten([f"{counted(count, 'file')} with {s}" for s, count in sorted(counts.items())])
