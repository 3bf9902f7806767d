"""How errors reach a user: one paragraph for what can be mended, a traceback for bugs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# What this package raises for wrong input, and for a run that diverged (FloatingPointError).
# Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, KeyError, FloatingPointError)
EXIT_USER_ERROR = 2


def describe(error: BaseException) -> str:
    """Return the message of an error without the tracebacks that workers paste into it."""
    if isinstance(error, KeyError) and error.args:
        message = str(error.args[0])  # str() of a KeyError would show the quotes of repr()
    else:
        message = str(error)
    marker = "Original Traceback (most recent call last):"
    if marker in message:
        # A data loader worker: its error is the last line that starts with the type's name.
        lines = message.strip().splitlines()
        start = max(
            index for index, line in enumerate(lines) if line and not line.startswith((" ", "\t"))
        )
        message = "\n".join(lines[start:]).split(": ", 1)[-1]
    return message.strip() or type(error).__name__


class BadFileError(ValueError):
    """A file of a dataset cannot be used; the message begins with its path.

    ``on_error: skip`` passes over these, and over files that cannot be opened; no other error.
    """


def listed(values: Sequence[object], most: int = 12) -> str:
    """``a, b and 3 more``; ``none`` of nothing."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return (", ".join(map(str, values[:most])) or "none") + more


def shorten(values: Sequence[object], most: int = 8) -> str:
    """``0, 1, 2, ... (40 in all)``."""
    shown = ", ".join(map(str, values[:most]))
    return shown + (f", ... ({len(values)} in all)" if len(values) > most else "")


def ranges(values: Iterable[int], between: str = "-") -> list[str]:
    """``[0, 1, 2, 3, 255]`` as ``['0-3', '255']``."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return [str(low) if low == high else f"{low}{between}{high}" for low, high in parts]


def quoted(value: object, most: int = 100) -> str:
    """The value as Python writes it, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
