"""Checks of single values in a data description; a fault is one `ValueError` that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmseg_eomt.datasets.label_table import MAX_MASK_VALUE

Color = tuple[int, int, int]


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple, of a config's own types too."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def plain(value: Any) -> Any:
    """A mapping as a dict, for messages."""
    return dict(value) if isinstance(value, Mapping) else value


def whole_number(value: Any, where: str, what: str) -> int:
    """A whole number from 0 to 65535, also as the text that JSON makes of keys."""
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if type(number) is not int or not 0 <= number <= MAX_MASK_VALUE:
        raise ValueError(
            f"{where}: {plain(value)!r} is not {what}; allowed are whole numbers from 0 to "
            f"{MAX_MASK_VALUE}."
        )
    return number


def color_of(value: Any, where: str, form: str) -> Color:
    """An RGB colour of three whole numbers from 0 to 255."""
    numbers = list(value) if is_list(value) else []
    if len(numbers) != 3 or any(type(c) is not int or not 0 <= c <= 255 for c in numbers):
        raise ValueError(f"{where}: {plain(value)!r} is no colour; {form}.")
    return numbers[0], numbers[1], numbers[2]


def numbers_and_colors(
    values: Sequence[Any], where: str, what: str
) -> tuple[tuple[int, ...], tuple[Color, ...]]:
    """Splits a list of mask values into numbers and colours, each given once.

    Raises:
        ValueError: If an entry is neither, or is given twice.
    """
    form = "a colour of an RGB mask is written [R, G, B], each from 0 to 255"
    numbers: list[int] = []
    colors: list[Color] = []
    for value in values:
        if is_list(value):
            colors.append(color_of(value, where, form))
        else:
            numbers.append(whole_number(value, where, what))
    twice = [value for value in numbers if numbers.count(value) > 1]
    if twice:
        hint = ""
        if len(numbers) == 3 and max(numbers) <= 255:
            hint = f" If {numbers} is one colour, write [{numbers}]."
        raise ValueError(f"{where}: {twice[0]} is given more than once. Remove one.{hint}")
    for color in colors:
        if colors.count(color) > 1:
            raise ValueError(f"{where}: colour {list(color)} is given more than once. Remove one.")
    return tuple(numbers), tuple(colors)


def refuse_shared(pairs: Iterable[tuple[Any, int]], where: str, what: str) -> None:
    """Raises a `ValueError` if two classes own the same value; pairs are (value, class id)."""
    owner: dict[Any, int] = {}
    for value, class_id in pairs:
        if value in owner:
            raise ValueError(
                f"{where}: {what} {value!r} belongs to the classes {owner[value]} and {class_id}. "
                "Each may belong to one class only."
            )
        owner[value] = class_id


def shorten(values: Sequence[int]) -> str:
    """The first 20 numbers and the count."""
    shown = ", ".join(map(str, values[:20]))
    return shown + (f", ... ({len(values)} in all)" if len(values) > 20 else "")
