"""Mask values to internal class ids by one table look-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

IGNORED = 255  # internal label of pixels that count for nothing; mmseg's own default
_UNKNOWN = 254  # marks mask values that no class claims; never leaves this module
MAX_CLASSES = 254  # internal ids 0..253
MAX_MASK_VALUE = 65535  # masks have 8 or 16 bits


class LabelTable:
    """Maps mask values to internal class ids.

    Args:
        mapping (Mapping[int, int]): Mask value to internal id, 255 for unlabelled.
        source (str): Where the classes were given, named in errors. Defaults to ``'classes'``.
    """

    def __init__(self, mapping: Mapping[int, int], *, source: str = "classes") -> None:
        self.source = source
        self.known = sorted(mapping)
        self._table = np.full(MAX_MASK_VALUE + 1, _UNKNOWN, dtype=np.uint8)
        self._table[list(mapping)] = list(mapping.values())

    def __call__(self, mask: NDArray[Any], path: str) -> NDArray[np.uint8]:
        """Maps a mask.

        Args:
            mask (ndarray): ``uint8`` or ``uint16`` ``[H, W]``, values as stored in the file.
            path (str): The file, named in errors.

        Returns:
            ndarray: ``uint8 [H, W]``, internal ids and 255 for unlabelled pixels.

        Raises:
            ValueError: If the mask holds a value that no class claims.
        """
        if mask.dtype == np.uint8:
            # cv2.LUT is about three times as fast as np.take on bytes.
            labels: NDArray[np.uint8] = np.asarray(cv2.LUT(mask, self._table[:256]))
        else:
            labels = np.take(self._table, mask)
        if bool((labels == _UNKNOWN).any()):
            raise ValueError(self._describe(mask, labels, path))
        return labels

    def _describe(self, mask: NDArray[Any], labels: NDArray[np.uint8], path: str) -> str:
        values, counts = np.unique(mask[labels == _UNKNOWN], return_counts=True)
        shown = ", ".join(
            f"{value} ({count} pixels)" for value, count in zip(values[:5], counts[:5], strict=True)
        )
        more = f" and {len(values) - 5} more" if len(values) > 5 else ""
        return (
            f"{path}: unknown mask value {shown}{more}; {self.source} allows "
            f"{_ranges(self.known)}. Add the value to the labels of a class, or to ignore_index "
            "if it means 'unlabelled'."
        )


def _ranges(values: list[int]) -> str:
    """``[0, 1, 2, 3, 255]`` as ``0-3, 255``."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
