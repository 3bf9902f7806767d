"""Ranges of input shapes that an engine is built for.

Shape legend: B images, C channels, H/W pixels.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from mmseg_eomt.deploy.metadata import DeployMetadata


class Size(NamedTuple):
    """Images, rows and columns of an input."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Shapes of one input: each axis from `minimum` to `maximum`, fastest at `optimum`.

    Raises:
        ValueError: If they differ in length, an axis is not positive or out of order.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = (self.minimum, self.optimum, self.maximum)
        ordered = len({len(shape) for shape in shapes}) == 1 and all(
            0 < low <= best <= high for low, best, high in zip(*shapes, strict=True)
        )
        if not ordered:
            raise ValueError(
                f"The profile is {self.minimum} to {self.maximum}, best at {self.optimum}: give "
                "three shapes of one length with 0 < minimum <= optimum <= maximum on each axis."
            )

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether an input may have this shape."""
        return len(shape) == len(self.minimum) and all(
            low <= side <= high
            for low, side, high in zip(self.minimum, shape, self.maximum, strict=True)
        )

    def __str__(self) -> str:
        if self.minimum == self.maximum:
            return str(list(self.minimum))
        return f"{list(self.minimum)} to {list(self.maximum)}, best at {list(self.optimum)}"


def parse_size(text: str) -> Size:
    """Read 'BATCHxHEIGHTxWIDTH', as '4x512x1024'.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ValueError(
            f"{text!r} is no input size: give BATCHxHEIGHTxWIDTH in pixels, as 4x512x1024."
        )
    return Size(*map(int, text.split("x")))


def profile_of(
    metadata: DeployMetadata,
    *,
    minimum: Size | None = None,
    optimum: Size | None = None,
    maximum: Size | None = None,
) -> Profile:
    """The profile of an exported model.

    Args:
        metadata: Of the model; says which axes are open.
        minimum: Smallest input. Defaults to one image of the size it was exported for.
        optimum: Input that the engine is tuned for. Defaults to the exported size and batch,
            brought between the other two.
        maximum: Largest input. Defaults to the exported size and batch.

    Returns:
        Shapes `[B, C, H, W]` or `[B, H, W, C]`, as the model takes them.

    Raises:
        ValueError: If a size differs from the model on an axis that is not open, or they are out
            of order.
    """
    exported = Size(metadata.batch_size, metadata.height, metadata.width)
    smallest = exported._replace(batch=1) if "batch" in metadata.dynamic else exported
    minimum = minimum or smallest
    maximum = maximum or Size(*map(max, zip(minimum, optimum or exported, exported, strict=True)))
    inside = (
        max(low, min(side, high))
        for low, side, high in zip(minimum, exported, maximum, strict=True)
    )
    optimum = optimum or Size(*inside)
    for name, size in (("minimum", minimum), ("optimum", optimum), ("maximum", maximum)):
        for axis, side, own in zip(Size._fields, size, exported, strict=True):
            if side != own and axis not in metadata.dynamic:
                open_axes = ", ".join(metadata.dynamic) or "none"
                raise ValueError(
                    f"The {name} of the profile is {size}, but the model's {axis} is always {own} "
                    f"(open axes: {open_axes}). Give {own}, or export it with {axis} dynamic."
                )
    return Profile(*(_shape(metadata, size) for size in (minimum, optimum, maximum)))


def _shape(metadata: DeployMetadata, size: Size) -> tuple[int, ...]:
    batch, height, width = size
    channels = metadata.model.in_channels
    if metadata.input.layout == "NHWC":
        return batch, height, width, channels
    return batch, channels, height, width
