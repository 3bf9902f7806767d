"""Mask values against the classes of a description: known, ignored, unknown."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from mmseg_eomt.datasets.data_description import DataDescription
from mmseg_eomt.datasets.label_table import IGNORED

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
