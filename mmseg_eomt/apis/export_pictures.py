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
    from mmseg_eomt.images.pixels import PixelsLike

MOST = 16
"""Pictures to compare on, evenly spread over those given."""
MADE = 4


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
    given: list[PixelsLike]
    if isinstance(images, (str, Path)):
        given, name = list(find_images(Path(images))), str(images)
    elif images is not None:
        given, name = list(images), "the images given"
    elif data is not None:
        description = load_data(data)
        pairs = [pair for folders in description.folders("val") for pair in find_pairs(folders)]
        given = [pair.image for pair in pairs]
        name = f"the validation images of {description.source}"
    else:
        return Pictures(
            None,
            channels,
            f"Compared on {MADE} made pictures (regions of texture): give real ones with images= "
            "or data= (--images, --data).",
        )
    if not given:
        raise ValueError("images is an empty list: give at least one image.")
    given = given[:: max(1, len(given) // MOST)][:MOST]
    return Pictures(given, channels, f"Compared on {len(given)} pictures of {name}.")
