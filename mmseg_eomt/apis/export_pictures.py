"""Which pictures an exported model is compared on: given ones, a dataset's, or made ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.datasets.file_pairs import find_pairs
from mmseg_eomt.images.prediction_files import find_images

if TYPE_CHECKING:
    from mmseg_eomt.deploy.pictures import Pixels
    from mmseg_eomt.images.reading import PixelsLike

MOST = 16
"""Pictures to compare on, evenly spread over those given."""
MADE = 4
CALIBRATION = 64
"""Pictures that int8 ranges are measured on, likewise."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures at any size.

    Args:
        images: The images; None makes pictures.
        channels: Of the model.
        note: Where they come from, for people.
    """

    images: Sequence[PixelsLike] | None
    channels: int
    note: str

    def at(self, size: tuple[int, int], *, count: int | None = None) -> list[Pixels]:
        """The first `count` pictures, or all, at a size."""
        from mmseg_eomt.deploy.pictures import fitted, made_pictures

        if self.images is None:
            return made_pictures(count or MADE, size, channels=self.channels)
        return [fitted(image, size, channels=self.channels) for image in self.images[:count]]


def choose_pictures(
    images: str | Path | Sequence[PixelsLike] | None, data: Any, *, channels: int
) -> Pictures:
    """Return the pictures to compare on.

    Args:
        images: An image, a folder, or a list of images.
        data: A dataset; its validation images are taken if there is no `images`.
        channels: Of the model.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If the list is empty or the dataset has no validation images.
    """
    if images is None and data is None:
        return Pictures(
            None,
            channels,
            f"Compared on {MADE} made pictures (regions of texture): give real ones with images= "
            "or data= (--images, --data).",
        )
    given, name = _given(images) if images is not None else _of_split(data, "val")
    chosen = _spread(given, MOST)
    return Pictures(chosen, channels, f"Compared on {len(chosen)} pictures of {name}.")


def calibration_pictures(
    images: str | Path | Sequence[PixelsLike] | None, data: Any, *, channels: int
) -> Pictures:
    """Return the pictures that int8 ranges are measured on.

    Args:
        images: As for `choose_pictures`; taken if there is no `data`.
        data: A dataset, whose training images are taken.
        channels: Of the model.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If there are no pictures: ranges of made ones would fit no real one.
    """
    if images is None and data is None:
        raise ValueError(
            "precision is 'int8', whose ranges are measured on pictures: give some of the kind the "
            "model is used on with images= or data= (--images, --data)."
        )
    given, name = _of_split(data, "train") if data is not None else _given(images)
    chosen = _spread(given, CALIBRATION)
    return Pictures(chosen, channels, f"Ranges were measured on {len(chosen)} pictures of {name}.")


def _given(images: str | Path | Sequence[PixelsLike] | None) -> tuple[list[PixelsLike], str]:
    if isinstance(images, (str, Path)):
        return list(find_images(Path(images))), str(images)
    if not images:
        raise ValueError("images is an empty list: give at least one image.")
    return list(images), "the images given"


def _of_split(data: Any, split: str) -> tuple[list[PixelsLike], str]:
    description = load_data(data)
    pairs = [pair for folders in description.folders(split) for pair in find_pairs(folders)]
    name = {"train": "training", "val": "validation"}[split]
    return [pair.image for pair in pairs], f"the {name} images of {description.source}"


def _spread(images: list[PixelsLike], most: int) -> list[PixelsLike]:
    return images[:: max(1, len(images) // most)][:most]
