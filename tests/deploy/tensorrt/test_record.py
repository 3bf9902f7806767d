"""The JSON file beside an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.tensorrt.profiles import Profile
from mmseg_eomt.deploy.tensorrt.record import EngineRecord, read_engine, record_path
from tests.apis.tiny import tiny_header

ENGINE = b"an engine"


def record() -> EngineRecord:
    return EngineRecord(
        tensorrt="10.16.1.11",
        gpu="NVIDIA L4 (8.9)",
        profiles={"images": Profile((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))},
        sha256=hashlib.sha256(ENGINE).hexdigest(),
        metadata=DeployMetadata(model=tiny_header(), height=32, width=32, dynamic=("batch",)),
    )


@pytest.mark.parametrize("with_metadata", [True, False])
def test_record_survives_the_file(tmp_path: Path, with_metadata: bool) -> None:
    written = record()
    if not with_metadata:
        written = dataclasses.replace(written, metadata=None)
    path = tmp_path / "model.engine"
    path.write_bytes(ENGINE)
    record_path(path).write_text(written.to_json())
    assert record_path(path).name == "model.engine.json"
    assert read_engine(path) == (ENGINE, written)


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    with pytest.raises(FileNotFoundError, match=r"model\.engine: no such file"):
        read_engine(path)
    path.write_bytes(ENGINE)
    with pytest.raises(FileNotFoundError, match=r"model\.engine\.json: no such file"):
        read_engine(path)


def test_record_of_another_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"rebuilt since")
    record_path(path).write_text(record().to_json())
    with pytest.raises(ValueError, match="describes another engine"):
        read_engine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"tensorrt": 10},
        {"profiles": {"images": {"minimum": [1]}}},
        {"profiles": {"images": {"minimum": [2], "optimum": [1], "maximum": [1]}}},
        {"metadata": {}},
        {"metadata": 1},
    ],
)
def test_damaged_record_is_refused(change: dict[str, object]) -> None:
    text = json.dumps({**json.loads(record().to_json()), **change})
    with pytest.raises(ValueError, match=r"x\.json: no valid record .* Build the engine again"):
        EngineRecord.from_json(text, source="x.json")
    with pytest.raises(ValueError, match=r"x\.json: no valid record"):
        EngineRecord.from_json("[", source="x.json")
