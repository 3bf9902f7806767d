"""Testing weights with a config that is not their own."""

from __future__ import annotations

from mmengine.config import Config

from mmseg_eomt.apis.run import other_test_size
from tests.apis.tiny import tiny_header


def _config(size: int) -> Config:
    pipeline = [dict(type="LoadImageFromFile"), dict(type="ResizeShortSide", size=size)]
    return Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))


def test_another_test_size_is_said() -> None:
    header = tiny_header(test_size=(64, 64))
    assert other_test_size(header, _config(64)) is None
    assert "(64, 64)" in (message := other_test_size(header, _config(96)) or "")
    assert "(96, 96)" in message
