"""What lies beside an engine: where it was built, for which shapes, and the model's metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.tensorrt.profiles import Profile

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
            values = json.loads(text)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version!r}; this one reads {FORMAT_VERSION}")
            metadata = values["metadata"]
            return cls(
                tensorrt=_string(values["tensorrt"]),
                gpu=_string(values["gpu"]),
                sha256=_string(values["sha256"]),
                profiles={
                    name: Profile(*(tuple(map(int, item[part])) for part in _PARTS))
                    for name, item in values["profiles"].items()
                },
                metadata=None
                if metadata is None
                else DeployMetadata.from_json(json.dumps(metadata), source=source),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{source}: no valid record of an engine ({error!r}). {mend}.") from (
                error
            )


_PARTS = tuple(field.name for field in dataclasses.fields(Profile))


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


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value
