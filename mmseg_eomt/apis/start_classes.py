"""The class head of a new task: anew, taken over, or row by row by the names of the classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CLASS_HEAD = "decode_head.class_head."
BY_NAME = "by_name"
REUSE = (False, True, BY_NAME)


@dataclass(frozen=True)
class ClassRow:
    """Where the class head's row of one class comes from.

    Attributes:
        name: Of the class in the new task; None is "no object".
        source: Row of the file's class head; None where it begins anew.
        hint: What a reader might have expected instead, or ''.
    """

    name: str | None
    source: int | None
    hint: str = ""


def check_reuse(value: Any) -> None:
    """Check the value of `reuse_class_head`.

    Raises:
        ValueError: If it is none of `REUSE`.
    """
    if not isinstance(value, (bool, str)) or value not in REUSE:
        raise ValueError(
            f"reuse_class_head is {value!r}; allowed: False (start anew), True (same classes) or "
            f"'{BY_NAME}' (row by row)."
        )


def fit_class_head(
    fitted: dict[str, Tensor],
    own: dict[str, Tensor],
    *,
    found: list[str],
    wanted: list[str],
    reuse: bool | str,
    source: Any,
) -> tuple[str, list[ClassRow]]:
    """Put a class head into `fitted` that fits the model.

    Args:
        fitted: Tensors of the file by name; those of the class head are replaced.
        own: Tensors of the model: weight ``[K + 1, C]`` and bias ``[K + 1]``, "no object" last.
        found: Classes of the file.
        wanted: Classes of the new task.
        reuse: One of `REUSE`.
        source: Name of the file for error messages.

    Returns:
        The rule in words, and with 'by_name' one row per class and one for "no object".

    Raises:
        ValueError: If `reuse` is True and the classes differ, or 'by_name' and a name is not
            unique.
    """
    check_reuse(reuse)
    if reuse is True:
        check_same(found, wanted, source)
        return "taken over", []
    names = [name for name in own if name.startswith(CLASS_HEAD)]
    if reuse is False:
        fitted.update({name: own[name] for name in names})
        return "begins anew (reuse_class_head=False)", []
    rows = match_classes(found, wanted, source)
    target = [index for index, row in enumerate(rows) if row.source is not None]
    origin = [row.source for row in rows if row.source is not None]
    for name in names:
        theirs, merged = fitted.get(name), own[name].detach().clone()
        if theirs is None or theirs.shape[1:] != merged.shape[1:] or len(theirs) <= len(found):
            continue  # a strict load names it
        merged[target] = theirs[origin].to(merged)
        fitted[name] = merged
    kept = len(target) - 1
    return (
        f"by name: {kept} of {len(wanted)} classes keep their rows, {len(wanted) - kept} begin "
        f"anew, 'no object' is kept, {len(found) - kept} of the file are left out",
        rows,
    )


def match_classes(found: list[str], wanted: list[str], source: Any) -> list[ClassRow]:
    """Match classes by exact name; space around a name does not count.

    Returns:
        One row per class in the order of `wanted`, and one for "no object".

    Raises:
        ValueError: If a name is there twice in the file or in the new task.
    """
    theirs, ours = ([name.strip() for name in names] for names in (found, wanted))
    for names, place in ((theirs, f"{source}: the file"), (ours, f"{source}: the dataset")):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{place} has more than one class named {_listed(twice)}, so classes cannot be "
                "matched by name. Rename them, or leave reuse_class_head=False."
            )
    places = {name: index for index, name in enumerate(theirs)}
    folded: dict[str, list[str]] = {}
    for name in theirs:
        if name not in ours:
            folded.setdefault(name.casefold(), []).append(name)
    rows = []
    for name in ours:
        similar = folded.get(name.casefold(), []) if name not in places else []
        hint = f"the file has {_listed(similar)}: not the same name" if similar else ""
        rows.append(ClassRow(name=name, source=places.get(name), hint=hint))
    return [*rows, ClassRow(name=None, source=len(found))]


def check_same(found: list[str], wanted: list[str], source: Any) -> None:
    """Check that classes are the same in the same order.

    Raises:
        ValueError: If not; the message names those that differ.
    """
    theirs, ours = ([name.strip() for name in names] for names in (found, wanted))
    if theirs == ours:
        return
    parts = []
    for title, names, others in (
        ("only in the file", theirs, ours),
        ("only in the dataset", ours, theirs),
    ):
        extra = [name for name in names if name not in others]
        if extra:
            parts.append(f"{title}: {_listed(extra)}")
    if not parts:
        moved = [f"{a!r} / {b!r}" for a, b in zip(theirs, ours, strict=False) if a != b]
        parts.append(f"another order (file / dataset): {', '.join(moved) or 'repeated names'}")
    raise ValueError(
        f"{source}: reuse_class_head=True needs the same classes in the same order. "
        f"{'; '.join(parts)}. reuse_class_head='{BY_NAME}' takes classes of the same name over "
        "and starts the others anew; False starts the whole class head anew."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
