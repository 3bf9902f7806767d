"""Classes of a data description: their names, values, colours, and what is ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_eomt.datasets.label_table import MAX_CLASSES, MAX_MASK_VALUE
from mmseg_eomt.errors import shorten
from mmseg_eomt.images.painting import default_palette

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


_DEFAULT_IGNORE_INDEX = 255


@dataclass(frozen=True)
class ClassEntry:
    """One class as the user wrote it.

    Attributes:
        id (int): The user's class id, which predictions carry.
        name (str): Name of the class.
        labels (tuple[int]): Mask values that belong to the class.
        color (tuple[int]): RGB colour in pictures.
        ignored (bool): Whether its pixels are treated as unlabelled.
        mask_colors (tuple): RGB colours in masks that belong to the class. Defaults to ().
    """

    id: int
    name: str
    labels: tuple[int, ...]
    color: Color
    ignored: bool
    mask_colors: tuple[Color, ...] = ()


def parse_classes(content: Mapping[str, Any], name: str) -> tuple[ClassEntry, ...]:
    """Reads ``classes``, ``ignore_classes`` and ``palette``.

    Args:
        content (Mapping): The whole description.
        name (str): The file, named in errors.

    Returns:
        tuple[ClassEntry]: In ascending id.

    Raises:
        ValueError: If anything in them is wrong.
    """
    given = content.get("classes")
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"{name}: classes: found {plain(given)!r}; give at least one class as 'ID: NAME' or "
            "'ID: {name: NAME, labels: [MASK VALUES]}'."
        )
    parsed: dict[int, tuple[str, tuple[int, ...], tuple[Color, ...]]] = {}
    for key, value in given.items():
        class_id = whole_number(key, f"{name}: classes", "a class id")
        if class_id in parsed:
            raise ValueError(f"{name}: classes: id {class_id} is given more than once.")
        parsed[class_id] = _entry(class_id, value, f"{name}: classes.{class_id}")
    where = f"{name}: classes"
    refuse_shared(((entry[0], i) for i, entry in parsed.items()), where, "name")
    numbers = [(value, i) for i, entry in parsed.items() for value in entry[1]]
    refuse_shared(numbers, where, "mask value")
    colors = [(list(color), i) for i, entry in parsed.items() for color in entry[2]]
    refuse_shared(((tuple(color), i) for color, i in colors), where, "colour")
    owners = dict(numbers)
    for color, class_id in colors:
        # In an RGB mask the number v means the grey (v, v, v).
        if len(set(color)) == 1 and owners.get(color[0], class_id) != class_id:
            raise ValueError(
                f"{where}: mask value {color[0]} belongs to class {owners[color[0]]} and the equal "
                f"grey {color} to class {class_id}. Each may belong to one class only: give the "
                "first one its own labels."
            )
    ignored = _ignored(content.get("ignore_classes"), sorted(parsed), name)
    ids = sorted(parsed)
    shown = _palette(content.get("palette"), [parsed[i][2] for i in ids], f"{name}: palette")
    return tuple(
        ClassEntry(
            id=i,
            name=parsed[i][0],
            labels=parsed[i][1],
            color=color,
            ignored=i in ignored,
            mask_colors=parsed[i][2],
        )
        for i, color in zip(ids, shown, strict=True)
    )


def parse_ignore_index(
    content: Mapping[str, Any], entries: Sequence[ClassEntry], name: str
) -> tuple[tuple[int, ...], tuple[Color, ...]]:
    """Reads ``ignore_index``: the numbers and the colours that mean "unlabelled".

    The default is 255, and nothing where classes have colours.

    Raises:
        ValueError: If an entry is no mask value, or belongs to a class.
    """
    has_colors = any(entry.mask_colors for entry in entries)
    given = content.get("ignore_index", [] if has_colors else _DEFAULT_IGNORE_INDEX)
    values = given if is_list(given) else [] if given is None else [given]
    numbers, colors = numbers_and_colors(values, f"{name}: ignore_index", "an entry")
    for entry in entries:
        both: list[Any] = [value for value in numbers if value in entry.labels]
        both += [list(color) for color in colors if color in entry.mask_colors]
        both += [v for v in numbers if (v, v, v) in entry.mask_colors]
        both += [list(c) for c in colors if len(set(c)) == 1 and c[0] in entry.labels]
        if both:
            raise ValueError(
                f"{name}: ignore_index: {both} is also a mask value of class {entry.id} "
                f"({entry.name}). Give the values that mean 'unlabelled' (default 255), or "
                "'ignore_index: []' if there are none."
            )
    return numbers, colors


def _entry(class_id: int, value: Any, where: str) -> tuple[str, tuple[int, ...], tuple[Color, ...]]:
    labels: Any = [class_id]
    name = value
    if isinstance(value, Mapping):
        unknown = sorted(set(map(str, value)) - {"name", "labels"})
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown}; allowed are name and labels.")
        name, labels = value.get("name"), value.get("labels", labels)
    if not isinstance(name, str) or not name.strip():
        # YAML reads a bare `no`, `on` or `3` as a boolean or a number.
        raise ValueError(f"{where}: the name is {name!r}, not text; write it in quotes.")
    if not is_list(labels) or not labels:
        raise ValueError(
            f"{where}.labels: found {labels!r}; give a list of mask values, [7, 9], or of colours, "
            "[[128, 64, 128]]."
        )
    return name.strip(), *numbers_and_colors(labels, f"{where}.labels", "a mask value")


def _ignored(given: Any, ids: Sequence[int], name: str) -> list[int]:
    where = f"{name}: ignore_classes"
    if given is not None and not is_list(given):
        raise ValueError(f"{where}: found {plain(given)!r}; give a list of whole numbers.")
    ignored = [whole_number(item, where, "an entry") for item in given or ()]
    missing = [i for i in ignored if i not in ids]
    if missing:
        raise ValueError(
            f"{where}: {missing} are no class ids; classes has {shorten(ids, 20)}. Remove them or "
            "add the classes."
        )
    kept = len(ids) - len(set(ignored))
    if not 1 <= kept <= MAX_CLASSES:
        raise ValueError(
            f"{name}: {kept} of {len(ids)} classes are left after ignore_classes; 1 to "
            f"{MAX_CLASSES} can be trained."
        )
    return ignored


def _palette(given: Any, mask_colors: Sequence[Sequence[Color]], where: str) -> list[Color]:
    """Colours in pictures: those given, else a class's first colour in masks, else distinct."""
    count = len(mask_colors)
    if given is None:
        taken = {colors[0] for colors in mask_colors if colors}
        free = (color for color in default_palette(count + len(taken)) if color not in taken)
        return [colors[0] if colors else next(free) for colors in mask_colors]
    form = f"give one [R, G, B] of 0 to 255 for each of the {count} classes in ascending id"
    if not is_list(given) or len(given) != count:
        length = f"{len(given)} entries" if is_list(given) else repr(plain(given))
        raise ValueError(f"{where}: found {length}; {form}.")
    result: list[Color] = []
    for value in given:
        color = color_of(value, where, form)
        if color in result:
            raise ValueError(
                f"{where}: {list(color)} is given to two classes; {form}, all distinct."
            )
        result.append(color)
    return result
