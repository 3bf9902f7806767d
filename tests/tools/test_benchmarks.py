"""The benchmarks run, and their measuring instruments measure."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmseg_eomt import export_onnx
from tests.apis.tiny import make_data
from tests.deploy.lively import lively_weights

BENCHMARKS = Path(__file__).parents[2] / "tools" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark as if it were run: its folder comes first on the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def hold(mebibytes: int) -> Callable[[int], object]:
    """Work that fills twice as much memory while it is prepared as when it runs."""
    bytearray(b"1") * (2 * mebibytes * 2**20)
    return lambda _: len(bytearray(b"1") * (mebibytes * 2**20))


def test_peak_memory_is_that_of_the_work_not_of_its_preparation(
    script: Callable[[str], ModuleType],
) -> None:
    # Some MiB more are code that runs for the first time.
    assert 99 < script("common").peak_memory(hold, 100) < 140


def test_contestants_take_turns(script: Callable[[str], ModuleType]) -> None:
    calls: list[tuple[str, int]] = []
    contestants = {name: lambda turn, name=name: calls.append((name, turn)) for name in "ab"}
    times = script("common").interleave(contestants, repeats=2, warm_up=1)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(seconds) for seconds in times.values()] == [2, 2]


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_flops_are_those_that_pytorch_counts(
    family: str, script: Callable[[str], ModuleType]
) -> None:
    pair = script("pair")
    shape = pair.Shape(family, "tiny", size=64, queries=8, classes=5)
    ours = pair.make_ours(shape).eval()
    counter = FlopCounterMode(display=False)
    # The fused kernel is not counted, plain products are.
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        ours.decode_head(ours.extract_feat(torch.randn(1, 3, 64, 64)))
    assert pair.forward_flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train_step", ["--masks", "1", "--model", "dinov2/vits14", "--variants", "1"]),
        ("train_step", ["--masks", "0", "--model", "dinov3/vits16", "--no-memory"]),
        ("loader", ["--step-seconds", "0.1", "--workers", "0"]),
        ("pretraining_loader", ["--workers", "0"]),
        ("pretrain_step", ["--workers", "0"]),
        ("inference", ["--model", "dinov3/vits16", "--batch", "1", "--no-memory"]),
        ("postprocess", ["--kinds", "regions"]),
        ("validation", ["--model", "dinov2/vits14", "--dtype", "bfloat16", "--no-memory"]),
    ],
)
def test_quick_run_prints_a_table(
    name: str,
    arguments: list[str],
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    script(name).main(["--quick", "--repeats", "1", "--threads", "1", *arguments])
    text = capsys.readouterr().out
    for word in ("median ms", "spread", "times as fast", "mmseg_eomt"):
        assert word in text
    assert ("peak MiB" in text) == ("loader" not in name and "--no-memory" not in arguments)


def test_what_ddp_costs_is_measured_in_a_group_of_one(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    ratio = script("ddp_overhead").main(["--quick", "--repeats", "1", "--threads", "1"])
    assert 0.1 < ratio < 10
    text = capsys.readouterr().out
    for word in ("no group", "DDP, 1 process", "over gloo", f"{ratio:.3f} times as long"):
        assert word in " ".join(text.split())
    assert not torch.distributed.is_initialized()


def test_gated_models_are_refused(script: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="another model"):
        script("pair").Shape.parse("dinov3/vits16plus")


def test_deployed_models_are_measured_beside_the_checkpoint(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = {"classes": ("a", "b", "c"), "class_ids": (3, 7, 300), "palette": ((1, 2, 3),) * 3}
    lively_weights(tmp_path / "w.safetensors", **three)
    arguments = {"checkpoint": tmp_path / "w.safetensors", "verify": False}
    export_onnx(tmp_path / "w.onnx", **arguments)
    data = make_data(tmp_path / "data")
    data["classes"] = {3: "a", 7: "b", 300: "c"}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    options = ["--data", "data.yaml", "--pictures", "2", "--repeats", "2", "--json", "times.json"]
    options = [str(tmp_path / word) if "." in word else word for word in options]
    main = script("deployed").main
    rows = main([str(tmp_path / "w.safetensors"), str(tmp_path / "w.onnx"), *options])
    assert [row.name for row in rows] == ["PyTorch, eager", "w.onnx"]
    assert rows[0].miou == pytest.approx(rows[1].miou, abs=0.05)
    assert all(len(row.model) == len(row.end_to_end) == 2 for row in rows)
    text = capsys.readouterr().out
    for word in ("p50 ms", "p95 ms", "times as fast", "mIoU", "3 turns of warm-up"):
        assert word in text
    stored = json.loads((tmp_path / "times.json").read_text())
    assert [row["name"] for row in stored] == ["PyTorch, eager", "w.onnx"]
