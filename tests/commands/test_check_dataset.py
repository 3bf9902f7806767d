"""The tool: exit codes, JSON, HTML, and places it refuses to write to."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.commands import check_dataset


@pytest.fixture(name="run")
def _run() -> Any:
    return lambda *arguments: check_dataset.main([str(argument) for argument in arguments])


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        for number in range(count):
            stem = f"{split}{number}"
            image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            mask = rng.permutation(np.arange(48 * 40, dtype=np.uint16) % 3).reshape(40, 48)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{stem}.jpg")
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / split / "masks" / f"{stem}.png")
    path = tmp_path / "data.yaml"
    path.write_text(
        "train: {images: train/images, masks: train/masks}\n"
        "val: {images: val/images, masks: val/masks}\n"
        "classes: {0: '<b>sky</b>', 1: road, 2: car}\n"
    )
    return path


def test_exit_codes_and_text(run: Any, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data) == 0
    captured = capsys.readouterr()
    assert "6 pairs of image and mask, 0 errors, 0 warnings, 0 notes" in captured.out
    assert captured.err == ""  # no terminal, no progress bar
    Image.new("L", (48, 40), 255).save(data.parent / "train/masks/train0.png")
    assert run(data) == 1
    assert "train/masks/train0.png" in capsys.readouterr().out
    (data.parent / "val/masks/val1.png").unlink()
    assert run(data) == 2
    assert "ERROR val: 1 of 2 images" in capsys.readouterr().out


def test_json_names_every_file(run: Any, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (data.parent / "train/masks").iterdir():
        Image.new("L", (48, 40), 9).save(path)
    assert run(data, "--json", "-") == 2
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == 2
    unknown = next(f for f in report["findings"] if f["code"] == "unknown_value")
    assert [Path(file["path"]).name for file in unknown["files"]] == [
        f"train{number}.png" for number in range(4)
    ]
    assert {file["detail"] for file in unknown["files"]} == {"9 (1920 pixels)"}
    assert report["splits"]["val"]["class_pixels"] == [1280, 1280, 1280]
    assert run(data, "--json", data.parent / "report.json") == 2
    assert json.loads((data.parent / "report.json").read_text()) == report


class _Tags(HTMLParser):
    """Open tags and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_stands_alone_and_is_well_formed(run: Any, data: Path) -> None:
    Image.new("L", (48, 40), 9).save(data.parent / "train/masks/train0.png")
    target = data.parent / "report.html"
    assert run(data, "--html", target) == 2
    text = target.read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert len(tags.sources) == 2 * 6  # an image and its overlay of each pair
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "<script" not in text
    assert "<b>sky" not in text and "&lt;b&gt;sky" in text
    assert "train0.png: 9 (1920 pixels)" in text


def test_reports_are_never_written_among_the_data(
    run: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = data.parent / "train/masks/report.json"
    assert run(data, "--json", inside) == 2
    assert "a folder of the dataset" in capsys.readouterr().err
    assert not inside.exists()
    before = data.read_text()
    assert run(data, "--html", data) == 2
    assert data.read_text() == before
    assert run(data, "--html", data.parent / "nowhere/x.html") == 2
    assert "Make it first" in capsys.readouterr().err


def test_config_gives_data_and_crop(
    run: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        f"train_dataloader = dict(dataset=dict(type='FolderSegDataset', data={str(data)!r}, "
        "pipeline=[dict(type='ScaleJitterCrop', size=(64, 64))]))\n"
    )
    assert run(config) == 0
    assert "smaller than the training crop of 64x64" in capsys.readouterr().out
    assert run(config, "--crop", 16) == 0
    assert "crop" not in capsys.readouterr().out
    config.write_text("train_dataloader = dict(dataset=dict(type='ADE20KDataset'))\n")
    assert run(config) == 2
    assert "reads ADE20KDataset; only folders" in capsys.readouterr().err


def test_missing_data_file_and_wrong_arguments(
    run: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none.yaml") == 2
    assert "no such data file" in capsys.readouterr().out
    assert run(tmp_path / "none.py") == 2
    assert "no such config" in capsys.readouterr().err
    assert run(data, "--workers", 0) == 2
    assert "workers is 0" in capsys.readouterr().err
