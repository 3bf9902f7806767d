"""Mask values to internal class ids by one table look-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmseg_eomt.errors import BadFileError, ranges

IGNORED = 255  # internal label of pixels that count for nothing; mmseg's own default
_UNKNOWN = 254  # marks mask values that no class claims; never leaves this module
MAX_CLASSES = 254  # internal ids 0..253
MAX_MASK_VALUE = 65535  # masks have 8 or 16 bits
_SHOWN = 5


class LabelTable:
    """Maps mask values to internal class ids.

    A grey or palette mask is mapped by its numbers, an RGB mask by its colours; there the
    number v means the grey (v, v, v).

    Args:
        mapping (Mapping[int, int]): Mask value to internal id, 255 for unlabelled.
        colors (Mapping[tuple, int], optional): RGB colour to internal id. Defaults to None: RGB
            masks are refused.
        unknown_values (str): ``'error'``, or ``'ignore'`` to take values that no class claims for
            unlabelled. Defaults to ``'error'``.
        source (str): Where the classes were given, named in errors. Defaults to ``'classes'``.
    """

    def __init__(
        self,
        mapping: Mapping[int, int],
        *,
        colors: Mapping[tuple[int, int, int], int] | None = None,
        unknown_values: str = "error",
        source: str = "classes",
    ) -> None:
        self.source = source
        self.known = sorted(mapping)
        self.colors = dict(colors or {})
        self._other = _UNKNOWN if unknown_values == "error" else IGNORED
        self._table = np.full(MAX_MASK_VALUE + 1, self._other, dtype=np.uint8)
        self._table[list(mapping)] = list(mapping.values())
        self._color_table: NDArray[np.uint8] | None = None

    def __call__(self, mask: NDArray[Any], path: str) -> NDArray[np.uint8]:
        """Maps a mask.

        Args:
            mask (ndarray): ``uint8`` or ``uint16`` ``[H, W]``, or ``uint8 [H, W, 3]`` RGB, values
                as stored in the file.
            path (str): The file, named in errors.

        Returns:
            ndarray: ``uint8 [H, W]``, internal ids and 255 for unlabelled pixels.

        Raises:
            BadFileError: If the mask holds a value that no class claims and such are errors, or
                colours though no class has one.
        """
        if mask.ndim == 3:
            if not self.colors:
                raise BadFileError(
                    f"{path}: the mask has {mask.shape[2]} channels (mode RGB), but no class in "
                    f"{self.source} has a colour. Give the classes' colours (labels: [[R, G, B]]), "
                    "or write masks of one channel whose pixel values are class ids."
                )
            mask = color_codes(mask)
            labels = np.take(self._colors_by_code(), mask)
        elif mask.dtype == np.uint8:
            # cv2.LUT is about three times as fast as np.take on bytes.
            labels = np.asarray(cv2.LUT(mask, self._table[:256]), dtype=np.uint8)
        else:
            labels = np.take(self._table, mask)
        if bool((labels == _UNKNOWN).any()):
            raise BadFileError(self._describe(mask, labels, path))
        return labels

    def __getstate__(self) -> dict[str, Any]:
        # 16 MiB that a worker fills again in a few milliseconds.
        return {**self.__dict__, "_color_table": None}

    def _colors_by_code(self) -> NDArray[np.uint8]:
        if self._color_table is None:
            table = np.full(1 << 24, self._other, dtype=np.uint8)
            greys = np.arange(256) * 0x010101
            table[greys] = self._table[:256]
            for (red, green, blue), label in self.colors.items():
                table[red << 16 | green << 8 | blue] = label
            self._color_table = table
        return self._color_table

    def _describe(self, mask: NDArray[Any], labels: NDArray[np.uint8], path: str) -> str:
        values, counts = np.unique(mask[labels == _UNKNOWN], return_counts=True)
        found = list(zip(values.tolist(), counts.tolist(), strict=True))
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        mend = (
            "Add the value to the labels of a class, to ignore_index if it means 'unlabelled', or "
            "say 'unknown_values: ignore'."
        )
        if mask.dtype == np.uint32:  # codes of colours
            found.sort(key=lambda item: -item[1])
            shown = ", ".join(f"{_color(c)} ({n} pixels)" for c, n in found[:_SHOWN])
            allowed = ", ".join(str(list(color)) for color in list(self.colors)[:20])
            return f"{path}: unknown colour {shown}{more}; {self.source} allows {allowed}. {mend}"
        shown = ", ".join(f"{value} ({count} pixels)" for value, count in found[:_SHOWN])
        return (
            f"{path}: unknown mask value {shown}{more}; {self.source} allows "
            f"{', '.join(ranges(self.known))}. {mend}"
        )


def color_codes(mask: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """``uint8 [H, W, 3]`` RGB as one number per pixel, ``R << 16 | G << 8 | B``, ``[H, W]``."""
    padded = np.zeros((*mask.shape[:2], 4), np.uint8)
    padded[..., :3] = mask[..., ::-1]
    codes: NDArray[np.uint32] = padded.view("<u4")[..., 0].astype(np.uint32, copy=False)
    return codes


def _color(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]
