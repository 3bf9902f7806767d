"""After which steps a monitor looks at the model."""

from __future__ import annotations


def check_interval(interval: float | int, *, name: str) -> None:
    """Refuses what is neither a share of the run nor a number of steps.

    Raises:
        ValueError: With the name of the argument and what is allowed.
    """
    share = isinstance(interval, float) and 0 < interval <= 1
    steps = isinstance(interval, int) and not isinstance(interval, bool) and interval >= 1
    if not share and not steps:
        raise ValueError(
            f"{name} is {interval!r}: give a share of the run as a float above 0 and up to 1, or a "
            "number of steps as an int."
        )


def is_due(done: int, *, total: int, interval: float | int) -> bool:
    """Whether a monitor looks after ``done`` of ``total`` steps: at each interval and the end.

    Args:
        done (int): Steps that are done, 0 before the first.
        total (int): Steps of the run.
        interval (float | int): Share of the run, rounded to steps, or steps.
    """
    steps = max(1, round(interval * total)) if isinstance(interval, float) else interval
    return done == total or done % steps == 0
