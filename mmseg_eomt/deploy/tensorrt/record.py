"""What lies beside an engine: where it was built, for which shapes, and the model's metadata.

Shape legend: B images, C channels, H/W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.header import Fields, all_of, check_names, is_whole, read_object


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
        ordered = (
            all(all_of(shape, is_whole) for shape in shapes)
            and len({len(shape) for shape in shapes}) == 1
            and all(low <= best <= high for low, best, high in zip(*shapes, strict=True))
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


FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class EngineRecord:
    """The JSON file `ENGINE.json` beside an engine.

    Args:
        tensorrt: Version of TensorRT that built the engine; no other one loads it.
        gpu: Name and compute capability of the GPU it was built on; it runs on no other kind.
        profiles: Shapes of each input, by name.
        sha256: Of the engine.
        metadata: Of the exported model; None for an ONNX file that did not come from
            mmseg_eomt's own export.
        format_version: Version of this layout.
    """

    tensorrt: str
    gpu: str
    profiles: dict[str, Profile]
    sha256: str
    metadata: DeployMetadata | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return all of it as one JSON object."""
        values = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "profiles": {name: dataclasses.asdict(item) for name, item in self.profiles.items()},
            "metadata": None if self.metadata is None else json.loads(self.metadata.to_json()),
        }
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> EngineRecord:
        """Read and check what `to_json` wrote.

        Args:
            text: The JSON text.
            source: Name of the file for error messages.

        Raises:
            ValueError: If it is nothing of the kind.
        """
        mend = "Build the engine again with tools/build_engine.py"
        try:
            values = read_object(text, cls, what="record", source="it", mend="")
            check_names(values, cls, "it")
            metadata, found = values["metadata"], values["profiles"]
            if metadata is not None:
                metadata = DeployMetadata.from_json(json.dumps(metadata), source="its 'metadata'")
            name = metadata and metadata.input.name
            if not isinstance(found, dict) or not found or name not in (None, *found):
                inputs = name or "each input"
                raise ValueError(f"field 'profiles' is {found!r}; allowed: shapes of {inputs}")
            profiles = {name: _profile(name, item) for name, item in found.items()}
            record = cls(**{**values, "profiles": profiles, "metadata": metadata})
            Fields("record", record).text("tensorrt", "gpu", "sha256")
        except ValueError as error:
            raise ValueError(
                f"{source}: no valid record of an engine ({error}). {mend}."
            ) from error
        return record


def _profile(name: str, item: object) -> Profile:
    where = f"field 'profiles.{name}'"
    check_names(item, Profile, where)
    assert isinstance(item, dict)
    try:
        return Profile(
            **{
                part: tuple(shape) if isinstance(shape, list) else shape
                for part, shape in item.items()
            }
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def record_path(engine: Path) -> Path:
    """Where the record of an engine lies."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> tuple[bytes, EngineRecord]:
    """Read an engine and its record.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If the record is invalid or belongs to another engine.
    """
    beside = record_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file. An engine and its .json are one: build them with "
                "tools/build_engine.py, and copy both."
            )
    engine = path.read_bytes()
    record = EngineRecord.from_json(beside.read_text(encoding="utf-8"), source=str(beside))
    if hashlib.sha256(engine).hexdigest() != record.sha256:
        raise ValueError(
            f"{beside} describes another engine than {path} (the checksums differ): copy both, or "
            "build the engine again."
        )
    return engine, record
