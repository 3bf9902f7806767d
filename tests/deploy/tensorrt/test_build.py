"""Building engines: what is missing is named; the rest is built by TensorRT-RTX, without a GPU."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmseg_eomt.deploy.half_precision import convert_precision
from mmseg_eomt.deploy.tensorrt import Profile, build_engine, runner
from mmseg_eomt.deploy.tensorrt.build import read_metadata, serialise
from tests.deploy.small_graphs import block, pictures
from tests.deploy.tensorrt.rtx import import_rtx

OPEN = Profile((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(block(), path)
    return path


def test_missing_packages_are_named_with_the_command(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError("libnvonnxparser.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"libnvonnxparser.* `pip install tensorrt-cu13`"):
        build_engine(model_path, model_path.with_suffix(".engine"))
    with pytest.raises(ImportError, match="`pip install cuda-python`"):
        runner.import_cuda()
    assert not model_path.with_suffix(".engine").exists()


def test_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = type("Old", (), {"__version__": "8.6.1"})
    monkeypatch.setattr(importlib, "import_module", lambda name: old)
    with pytest.raises(ImportError, match=r"TensorRT is 8\.6\.1, at least 10 is needed"):
        runner.import_tensorrt()


def test_missing_gpu_is_said() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if int(cuda.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    with pytest.raises(OSError, match=r"No GPU can be used: cudaError.*nvidia-smi"):
        runner.import_cuda()


def test_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.onnx: no such file\. tools/export\.py"):
        read_metadata(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"model\.onnx: no ONNX file"):
        read_metadata(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("opset", [18, 22])
def test_rtx_builds_each_precision(model_path: Path, dtype: str, opset: int) -> None:
    rtx = import_rtx()
    model = block(opset=opset)
    if dtype != "fp32":
        model = convert_precision(model, dtype=dtype, samples=[pictures()])
    onnx.save(model, model_path)
    engine, profiles = serialise(rtx, model_path, profiles={"images": OPEN})
    assert len(engine) > 1000
    assert profiles == {"images": OPEN}


@pytest.mark.slow
def test_rtx_needs_profiles_that_fit(model_path: Path) -> None:
    rtx = import_rtx()
    with pytest.raises(ValueError, match=r"'images' of .* is \[-1, 3, 16, 16\] with open axes"):
        serialise(rtx, model_path, profiles={})
    wrong = Profile((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 32, 32))
    with pytest.raises(ValueError, match="does not fit it"):
        serialise(rtx, model_path, profiles={"images": wrong})
    with pytest.raises(ValueError, match=r"has no input x; its inputs: \['images'\]"):
        serialise(rtx, model_path, profiles={"images": OPEN, "x": OPEN})


@pytest.mark.slow
def test_rtx_writes_and_reads_a_timing_cache(model_path: Path, tmp_path: Path) -> None:
    rtx = import_rtx()
    cache = tmp_path / "cache"
    for _ in range(2):
        serialise(rtx, model_path, profiles={"images": OPEN}, timing_cache=cache)
        assert cache.stat().st_size > 0


# Two controls: what refuses a faulty graph must be able to refuse.


@pytest.mark.slow
def test_rtx_refuses_an_operator_that_nobody_has(tmp_path: Path) -> None:
    rtx = import_rtx()
    node = helper.make_node("TRTBicubicInterpolate", ["x"], ["y"], domain="mmdeploy")
    with pytest.raises(ValueError, match="Plugin not found"):
        serialise(rtx, one_node(tmp_path, node, opset=17), profiles={})


@pytest.mark.slow
def test_rtx_refuses_dropout_in_training(tmp_path: Path) -> None:
    rtx = import_rtx()
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])
    stored = {"ratio": np.array(0.1, np.float32), "training": np.array(True)}
    with pytest.raises(ValueError, match="Dropout operator in training mode"):
        serialise(rtx, one_node(tmp_path, node, opset=17, **stored), profiles={})


def one_node(folder: Path, node: onnx.NodeProto, *, opset: int, **stored: Any) -> Path:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mmdeploy", 1)]
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.slow
def test_warnings_of_tensorrt_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    rtx = import_rtx()
    logger = runner.make_logger(rtx)
    with caplog.at_level(logging.WARNING):
        logger.log(rtx.ILogger.WARNING, "careful")
        logger.log(rtx.ILogger.INFO, "chatter")
        logger.log(rtx.ILogger.ERROR, "broken")
    assert [entry.getMessage() for entry in caplog.records] == ["TensorRT: careful"]
    assert logger.errors == ["broken"]
