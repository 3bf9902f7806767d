"""The JSON file beside an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mmseg_eomt.deploy.metadata import DeployMetadata, InputSpec
from mmseg_eomt.deploy.tensorrt.record import (
    EngineRecord,
    Profile,
    Size,
    parse_size,
    profile_of,
    read_engine,
    record_path,
)
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


def metadata(**changes: Any) -> DeployMetadata:
    values = {"height": 64, "width": 96, "batch_size": 4}
    return DeployMetadata(model=tiny_header(), **{**values, **changes})


def test_static_model_has_one_shape() -> None:
    profile = profile_of(metadata())
    assert profile == Profile((4, 3, 64, 96), (4, 3, 64, 96), (4, 3, 64, 96))
    assert profile.allows((4, 3, 64, 96))
    assert not profile.allows((1, 3, 64, 96))
    assert not profile.allows((4, 3, 64))
    assert str(profile) == "[4, 3, 64, 96]"


def test_open_batch_starts_at_one() -> None:
    profile = profile_of(metadata(dynamic=("batch",)))
    assert profile == Profile((1, 3, 64, 96), (4, 3, 64, 96), (4, 3, 64, 96))
    assert all(profile.allows((batch, 3, 64, 96)) for batch in (1, 2, 4))
    assert not profile.allows((5, 3, 64, 96))


def test_given_sizes_and_channels_last() -> None:
    given = metadata(
        dynamic=("batch", "height", "width"), input=InputSpec(layout="NHWC", dtype="uint8")
    )
    profile = profile_of(given, minimum=Size(1, 32, 32), maximum=Size(8, 128, 128))
    assert profile == Profile((1, 32, 32, 3), (4, 64, 96, 3), (8, 128, 128, 3))
    # The exported size need not lie between them.
    profile = profile_of(given, minimum=Size(1, 32, 32), maximum=Size(2, 48, 128))
    assert profile.optimum == (2, 48, 96, 3)
    profile = profile_of(given, optimum=Size(2, 128, 128))
    assert profile.maximum == (4, 128, 128, 3)


def test_size_of_a_static_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"maximum of the profile is 4x128x96, but the model's "):
        profile_of(metadata(dynamic=("batch",)), maximum=Size(4, 128, 96))
    with pytest.raises(ValueError, match=r"batch is always 4 \(open axes: none\)"):
        profile_of(metadata(), minimum=Size(1, 64, 96))


def test_order_is_checked() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 96\) to \(1, 3, 64, 96\)"):
        profile_of(metadata(dynamic=("batch",)), minimum=Size(2, 64, 96), maximum=Size(1, 64, 96))
    with pytest.raises(ValueError, match="0 < minimum"):
        Profile((0, 3), (1, 3), (1, 3))
    with pytest.raises(ValueError, match="of one length"):
        Profile((1,), (1, 3), (1, 3))


def test_sizes_are_read_from_the_command_line() -> None:
    assert parse_size("4x512x1024") == Size(4, 512, 1024)
    for wrong in ("512x512", "0x512x512", "1x512x512x3", "1X512X512", "-1x2x3", "1x2x3\n"):
        with pytest.raises(ValueError, match="BATCHxHEIGHTxWIDTH"):
            parse_size(wrong)
