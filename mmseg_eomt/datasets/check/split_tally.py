"""Sums over the pairs of a split, and what the values of its masks stand for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmseg_eomt.datasets.check.findings import FileNote, SplitNumbers, counted
from mmseg_eomt.datasets.check.pair_facts import PairFacts
from mmseg_eomt.datasets.data_description import DataDescription
from mmseg_eomt.datasets.file_pairs import FilePair
from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.errors import shorten

UNKNOWN = -1


class ValueClasses:
    """Internal class ids of mask values, by the table that training uses.

    Args:
        description (DataDescription): Of the dataset.

    Attributes:
        takes_colors (bool): Whether a class has colours of RGB masks.
        ignores_unknown (bool): Whether training takes unknown values for unlabelled.
    """

    def __init__(self, description: DataDescription) -> None:
        self.takes_colors = any(getattr(entry, "mask_colors", ()) for entry in description.entries)
        # A description that lets unknown values pass would hide them here.
        self.ignores_unknown = getattr(description, "unknown_values", "error") != "error"
        if self.ignores_unknown:
            changes: dict[str, Any] = {"unknown_values": "error"}
            description = dataclasses.replace(description, **changes)
        self._table = description.label_table()
        self._known: dict[Hashable, int] = {}

    def __getitem__(self, value: Hashable) -> int:
        """The internal id, `IGNORED`, or `UNKNOWN`."""
        if value not in self._known:
            self._known[value] = self._look_up(value)
        return self._known[value]

    def _look_up(self, value: Hashable) -> int:
        shape = (1, 1, len(value)) if isinstance(value, tuple) else (1, 1)
        wide = np.max(value) > 255  # type: ignore[call-overload]
        mask = np.array(value, np.uint16 if wide else np.uint8).reshape(shape)
        try:
            return int(self._table(mask, "")[0, 0])
        except ValueError:
            return UNKNOWN

    def unknown(self, values: Mapping[Hashable, int]) -> dict[Hashable, int]:
        """Those of ``values`` that no class claims, with their pixels."""
        return {value: n for value, n in values.items() if self[value] == UNKNOWN}

    def labelled(self, values: Iterable[Hashable]) -> bool:
        """Whether one of ``values`` belongs to a class that is trained."""
        return any(self[value] not in (IGNORED, UNKNOWN) for value in values)


_MANY_VALUES = 5000  # distinct values remembered of a split; class ids are far fewer


@dataclass(slots=True)
class Digests:
    """The contents of a pair."""

    pair: FilePair
    image: bytes
    mask: bytes
    one_value: bool


@dataclass
class SplitTally:
    """What was read of a split so far.

    Attributes:
        name (str): The split.
        classes (ValueClasses): Of the dataset.
        num_classes (int): Number of classes that are trained.
        numbers (SplitNumbers): For the report.
        value_pixels, value_images (Counter): By mask value.
        faults (dict): Files by the code of their fault.
        digests (list): Contents, to find duplicates.
        flat_images, image_masks (int): Files that look like the other kind.
        readable_images, readable_masks (int): Files that could be read.
        most_values (int): The largest number of distinct values of one mask.
        labelled (list): Pairs with something labelled, for pictures.
    """

    name: str
    classes: ValueClasses
    num_classes: int
    numbers: SplitNumbers = field(default_factory=SplitNumbers)
    value_pixels: Counter[Hashable] = field(default_factory=Counter)
    value_images: Counter[Hashable] = field(default_factory=Counter)
    faults: dict[str, list[FileNote]] = field(default_factory=dict)
    digests: list[Digests] = field(default_factory=list)
    flat_images: int = 0
    image_masks: int = 0
    readable_images: int = 0
    readable_masks: int = 0
    most_values: int = 0
    labelled: list[FilePair] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers.class_pixels = [0] * self.num_classes
        self.numbers.class_images = [0] * self.num_classes

    def add(self, facts: PairFacts) -> None:
        """Adds a pair."""
        numbers, pair = self.numbers, facts.pair
        numbers.pairs += 1
        if facts.image_fault:
            self._fault(facts.image_fault.code, pair.image, facts.image_fault.detail)
        else:
            self.readable_images += 1
            self.flat_images += facts.flat_image
            size = facts.image_size
            numbers.sizes[size] = numbers.sizes.get(size, 0) + 1
        self.add_mask(facts)
        if facts.image_fault or facts.mask_fault:
            return
        numbers.read += 1
        if facts.image_size != facts.mask_size:
            self._fault("size_mismatch", pair.mask, _sizes(facts))
        one_value = facts.num_values == 1
        self.digests.append(Digests(pair, facts.image_digest, facts.mask_digest, one_value))

    def add_mask(self, facts: PairFacts) -> None:
        """Adds what the mask of a pair holds."""
        if facts.mask_fault:
            self._fault(facts.mask_fault.code, facts.pair.mask, facts.mask_fault.detail)
        else:
            self.readable_masks += 1
            self.image_masks += facts.mask_is_image
            self._add_values(facts)

    def _add_values(self, facts: PairFacts) -> None:
        numbers, pair = self.numbers, facts.pair
        if not self.classes.takes_colors and any(isinstance(v, tuple) for v in facts.values):
            self._fault("mask_mode", pair.mask, self._colors(facts))
            return
        self.most_values = max(self.most_values, facts.num_values)
        found: set[int] = set()
        for value, pixels in facts.values.items():
            label = self.classes[value]
            found.add(label)
            if label == UNKNOWN:
                numbers.unknown_pixels += pixels
            elif label == IGNORED:
                numbers.ignored_pixels += pixels
            else:
                numbers.class_pixels[label] += pixels
            if value in self.value_pixels or len(self.value_pixels) < _MANY_VALUES:
                self.value_pixels[value] += pixels
                self.value_images[value] += 1
        for label in found - {UNKNOWN, IGNORED}:
            numbers.class_images[label] += 1
        if UNKNOWN in found:
            code = "unknown_ignored" if self.classes.ignores_unknown else "unknown_value"
            self._fault(code, pair.mask, self._unknown_detail(facts))
        elif found == {IGNORED}:
            self._fault("no_labelled_pixel", pair.mask, "")
        else:
            self.labelled.append(pair)

    def _unknown_detail(self, facts: PairFacts) -> str:
        unknown = sorted(self.classes.unknown(facts.values).items(), key=lambda item: -item[1])
        shown = [f"{value} ({counted(pixels, 'pixel')})" for value, pixels in unknown[:5]]
        more = facts.num_values - len(facts.values) + len(unknown) - len(shown)
        return shorten(shown) + (f" and {more} more values" if more > 0 else "")

    @staticmethod
    def _colors(facts: PairFacts) -> str:
        often = sorted(facts.values.items(), key=lambda item: -item[1])[:5]
        return f"RGB with {counted(facts.num_values, 'colour')}: " + shorten(
            [f"{list(v) if isinstance(v, tuple) else v} ({n} pixels)" for v, n in often]
        )

    def _fault(self, code: str, path: str, detail: str) -> None:
        self.faults.setdefault(code, []).append(FileNote(path, detail))


def _sizes(facts: PairFacts) -> str:
    (width, height), (mask_width, mask_height) = facts.image_size, facts.mask_size
    exchanged = ""
    if (width, height) == (mask_height, mask_width):
        exchanged = "; width and height exchanged: does the image carry an EXIF orientation?"
    elif width * mask_height == height * mask_width:
        exchanged = "; of the same shape: resized?"
    return f"mask {mask_width}x{mask_height}, image {width}x{height} (width x height){exchanged}"
