"""Where the images and masks of a split lie: folders, or templates of file names.

``images`` and ``masks`` are each a folder, or ``FOLDER/NAME`` where NAME holds ``{stem}`` once,
such as ``masks/{stem}_label.png``. An image and its mask lie in the same subfolder below the two
FOLDERs and have the same stem. NAME without a suffix (``masks/{stem}_label``) takes any suffix
that is allowed; one with a suffix takes that one, in capitals too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_eomt.datasets.data_values import is_list, plain

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
