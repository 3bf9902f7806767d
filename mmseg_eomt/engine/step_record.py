"""What the steps since the last log line gave, kept on the device until it is read once."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmseg_eomt.engine.optimizers.non_finite import NonFiniteError

SHOWN_FILES = 8


class StepRecord:
    """Scalars of some training steps.

    mmengine reads every loss back at every step, which makes the host wait for the GPU some
    twenty times a step. Here the values stay where they are; :meth:`flush` reads all of them in
    one transfer and averages them over steps and processes.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[dict[str, Tensor]] = []
        self._files: list[list[str]] = []

    def add(self, step: int, values: dict[str, Tensor], files: list[str]) -> None:
        """Keeps the scalars of one step.

        Args:
            step (int): Its number, from 0.
            values (dict[str, Tensor]): Scalars; the same names at each step.
            files (list[str]): Images it was computed from.
        """
        self._steps.append(step)
        self._values.append({name: value.detach() for name, value in values.items()})
        self._files.append(files)

    def state(self) -> dict[str, Any]:
        """The steps kept, as plain data: a run resumed between log lines logs the same means."""
        names = list(self._values[0]) if self._values else []
        rows = [torch.stack([row[name].float() for name in names]) for row in self._values]
        return {
            "steps": list(self._steps),
            "names": names,
            "values": torch.stack(rows).cpu() if rows else torch.zeros(0, 0),
            "files": [list(files) for files in self._files],
        }

    def load(self, states: list[dict[str, Any]]) -> None:
        """Takes steps over from :meth:`state`, of this process or of all that there were.

        Args:
            states (list[dict]): One: this process's own. Several: the mean of their values, which
                gives the same mean over any number of processes.
        """
        first = states[0]
        values = torch.stack([state["values"] for state in states]).mean(dim=0)
        self._steps = list(first["steps"])
        self._values = [dict(zip(first["names"], row, strict=True)) for row in values]
        self._files = [
            [name for state in states for name in state["files"][index]]
            for index in range(len(self._steps))
        ]

    def flush(self, *, must_be_finite: tuple[str, ...] = ("loss",)) -> dict[str, float]:
        """Means over the steps since the last call and over processes; forgets the steps.

        All processes must call it together.

        Args:
            must_be_finite (tuple[str, ...]): Names that may not be infinite or NaN.

        Returns:
            dict[str, float]: Empty if there was no step.

        Raises:
            NonFiniteError: Naming the first bad step and its images, on every process.
        """
        if not self._steps:
            return {}
        names = list(self._values[0])
        rows = [torch.stack([row[name].float() for name in names]) for row in self._values]
        table = torch.stack(rows)  # [steps, names]
        own = table.clone()
        # One NaN makes the mean NaN, so that all processes stop together.
        all_reduce(table, op="mean")
        steps, files = self._steps, self._files
        self._steps, self._values, self._files = [], [], []
        values = table.tolist()
        checked = [names.index(name) for name in must_be_finite if name in names]
        finite = torch.isfinite(table[:, checked]).all(dim=1).tolist()
        if not all(finite):
            bad = finite.index(False)
            found = {names[i]: float(own[bad, i]) for i in checked}
            raise NonFiniteError(
                f"Step {steps[bad] + 1} gave {found} on this process (mean over processes "
                f"{ {names[i]: values[bad][i] for i in checked} }). Images of this process: "
                f"{shortened(files[bad])}. Lower the learning rate, use precision bf16 or fp32, "
                "or look at these images and masks."
            )
        return dict(zip(names, table.mean(dim=0).tolist(), strict=True))


def image_paths(data_batch: dict[str, Any] | None) -> list[str]:
    """Image files of a batch, as far as its samples name them."""
    samples = (data_batch or {}).get("data_samples") or []
    return [_path_of(sample) for sample in samples]


def _path_of(sample: Any) -> str:
    if isinstance(sample, dict):  # of pretraining, which has no masks to pack
        return str(sample.get("path", "<no path>"))
    return str(getattr(sample, "img_path", "<no path>"))


def shortened(files: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(files) - SHOWN_FILES
    return ", ".join(files[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")
