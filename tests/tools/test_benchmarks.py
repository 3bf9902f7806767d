"""The benchmarks run, and their measuring instruments measure."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
    assert ("peak MiB" in text) == (name != "loader" and "--no-memory" not in arguments)


def test_gated_models_are_refused(script: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="another model"):
        script("pair").Shape.parse("dinov3/vits16plus")
