"""Step counts given as a share of the run or as absolute steps."""

from __future__ import annotations


def resolve_steps(value: float | int, total: int, *, name: str) -> float:
    """``value`` in steps: a float is a share of ``total``, an int is steps.

    Args:
        value (float | int): Share in [0, 1], or steps >= 0.
        total (int): Steps of the run.
        name (str): The setting, for the error.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} is {value!r}: give a float in [0, 1] (share of the run) or an int (steps)."
        )
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{name} is {value} steps: it must not be negative.")
        return float(value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{name} is {value!r}: a float is a share of the run and lies in [0, 1]; write "
            "absolute steps as an int."
        )
    return float(round(value * total))
