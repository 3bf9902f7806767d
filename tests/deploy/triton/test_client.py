"""Triton's client gives a session's labels: requests, windows and batches, over HTTP."""

from __future__ import annotations

import runpy
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.deploy import Session
from mmseg_eomt.deploy.triton import TritonRunner, write_model_folder
from tests.deploy.lively import picture
from tests.deploy.triton.serving import served

ROOT = Path(__file__).parents[3]


def windows_equal(model: Path, folder: Path, sizes: list[tuple[int, int]]) -> list[list[int]]:
    """Whether server and file give the same labels; returns the shapes of the requests."""
    images = [picture(size, seed=seed) for seed, size in enumerate(sizes)]
    expected = Session(model).predict_batch(images)
    assert len(np.unique(np.concatenate([mask.ravel() for mask in expected]))) >= 3
    with served(folder) as (url, shapes):
        found = Session(TritonRunner(url, folder.name)).predict_batch(images)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one == other).mean() >= 0.9999
    return shapes


def test_windows_share_batches_that_the_server_takes(exported: Path, tmp_path: Path) -> None:
    folder = write_model_folder(exported, tmp_path, max_batch=3)
    shapes = windows_equal(exported, folder, [(32, 32), (24, 32), (32, 130)])  # 1, 2, 5 windows
    assert shapes == [[3, 3, 32, 32], [3, 3, 32, 32], [2, 3, 32, 32]]


def test_fixed_batches_and_open_sides(whole_bytes: Path, tmp_path: Path) -> None:
    folder = write_model_folder(whole_bytes, tmp_path)
    shapes = windows_equal(whole_bytes, folder, [(40, 48), (33, 50)])
    assert shapes == [[2, 40, 48, 3], [2, 33, 50, 3]]


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return write_model_folder(exported, tmp_path / "served")


def run(tool: str, *arguments: str | Path) -> int:
    main = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]
    code: int = main([str(argument) for argument in arguments])
    return code


def test_the_tools(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture((40, 50)).save(tmp_path / "image.png")
    model = folder / "1" / "model.onnx"
    assert run("triton_repository", model, tmp_path / "models", "--name", "town") == 0
    assert "tritonserver --model-repository" in capsys.readouterr().out
    with served(tmp_path / "models" / "town") as (url, _):
        arguments = ("town", tmp_path / "image.png", "--out", tmp_path, "--url", url)
        assert run("triton_predict", *arguments) == 0
    mask = np.asarray(Image.open(tmp_path / "masks" / "image.png"))
    expected = Session(model).predict(tmp_path / "image.png")
    np.testing.assert_array_equal(mask, expected)
    assert run("triton_repository", model, tmp_path / "models", "--name", "town") == 2


def test_no_server_or_model_is_named_with_its_mend(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"No answer from Triton on {url}.*tritonserver"):
            TritonRunner(url, "street")
    with pytest.raises(ValueError, match="host and port alone"):
        TritonRunner("http://localhost:8000", "street")
    with served(folder) as (url, _), pytest.raises(ValueError, match=r"refuses .*'town'"):
        TritonRunner(url, "town")
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with pytest.raises(ImportError, match=r"pip install 'tritonclient\[http\]'"):
        TritonRunner("localhost:8000", "street")


def test_a_model_of_others_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "street"
    shutil.copytree(folder, other)
    lines = (other / "config.pbtxt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("parameters")]
    (other / "config.pbtxt").write_text("\n".join(lines))
    with served(other) as (url, _), pytest.raises(ValueError, match="no metadata of mmseg_eomt"):
        TritonRunner(url, "street")
