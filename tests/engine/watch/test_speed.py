"""What the log says of speed: over all processes, without validations, and never made up."""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmseg_eomt.engine.hooks import TrainingMonitorHook
from mmseg_eomt.engine.watch.cost import gradients_of, training_flops
from mmseg_eomt.engine.watch.speed import StepClock, peak_of, peak_tflops
from tests.apis.tiny import make_data
from tests.engine.engine_toys import ToyData, loader, logged, runner
from tests.engine.sharding_tasks import config
from tests.engine.watch.speed_tasks import PEAK_TFLOPS, Sleep, train
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[3]


class SlowData(ToyData):
    """Takes a twentieth of a second for each sample."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.05)
        return super().__getitem__(index)


def test_images_a_second_are_those_of_the_steps_without_validation(tmp_path: Path) -> None:
    sleep = Sleep(step=0.2, val=1.5)
    runner(tmp_path, steps=6, interval=2, batch_size=2, with_val=True, hooks=[sleep]).train()
    speed = logged(tmp_path, "images_per_second")
    # Steps 2; 3 and 4 with a validation between them; 5 and 6. Four images and 0.2 s a step.
    assert set(speed) == {2, 4, 6}
    for value in speed.values():
        assert 6 < value <= 20
    assert all(wait < 0.2 for wait in logged(tmp_path, "data_wait").values())


def test_waiting_for_data_is_seen(tmp_path: Path) -> None:
    data = loader(batch_size=2, data=SlowData())
    runner(tmp_path, steps=4, interval=2, batch_size=2, train=data, hooks=[Sleep(step=0.2)]).train()
    wait = logged(tmp_path, "data_wait")
    # Of a step, 4 x 0.05 s are the data's, in two micro-batches, and 0.2 s are not.
    assert all(0.2 < share < 0.55 for share in wait.values()), wait


def test_without_a_known_peak_there_is_no_utilisation(tmp_path: Path) -> None:
    runner(tmp_path, steps=4).train()
    assert logged(tmp_path, "mfu") == {}
    line = next(line for line in _text(tmp_path).splitlines() if "[4/4]" in line)
    form = r"images_per_second: \d\S*  data_wait: \d+\.\d%  memory_resident: \d+(  |$)"
    assert re.search(form, line), line
    assert "mfu" not in line


def test_a_gpus_memory_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine adds that of the first process to the line; here with a GPU it only believes in."""
    run = runner(tmp_path, steps=2)
    monkeypatch.setattr("mmengine.runner.log_processor.is_cuda_available", lambda: True)
    monkeypatch.setattr("mmengine.runner.log_processor.get_max_cuda_memory", lambda device: 17)
    numbers = {"memory_allocated": 18.4, "memory_reserved": 30.6}
    monkeypatch.setattr("mmseg_eomt.engine.watch.speed.memory_use", lambda device: numbers)
    run.train()
    line = next(line for line in _text(tmp_path).splitlines() if "[2/2]" in line)
    assert re.findall(r"memory\S*: \S+", line) == ["memory_allocated: 18", "memory_reserved: 31"]
    assert logged(tmp_path, "memory") == {2: 17}
    assert logged(tmp_path, "memory_reserved") == {2: 30.6}


def test_memory_is_that_of_the_process(tmp_path: Path) -> None:
    runner(tmp_path / "a", steps=2, interval=1).train()
    held = torch.ones(64 * 2**20)  # 256 MiB
    runner(tmp_path / "b", steps=2, interval=1).train()
    before, after = (logged(tmp_path / name, "memory_resident")[1] for name in "ab")
    assert held.sum() > 0 and 250 < after - before < 300


def test_the_first_step_is_not_measured(tmp_path: Path) -> None:
    runner(tmp_path, steps=3, interval=1).train()
    assert set(logged(tmp_path, "images_per_second")) == {2, 3}
    assert set(logged(tmp_path, "memory_resident")) == {1, 2, 3}


def test_peaks_are_for_whole_names_only() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989.4
    assert peak_tflops("NVIDIA H200", "fp16") == 989.4
    assert peak_tflops("NVIDIA H100 PCIe", "tf32") == 378
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5
    assert peak_tflops("Tesla T4", "fp16") == 65
    assert peak_tflops("Tesla T4", "bf16") is None
    for other in ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu"):
        assert peak_tflops(other, "bf16") is None
    assert peak_of(torch.device("cpu"), "fp32") is None


def test_peak_must_be_positive() -> None:
    with pytest.raises(ValueError, match="peak_tflops is 0"):
        TrainingMonitorHook(peak_tflops=0)


def test_clock_leaves_pauses_out() -> None:
    clock = StepClock()
    clock.start()
    with clock.waiting():
        time.sleep(0.1)
    with clock.pause():
        time.sleep(0.3)
    lap = clock.lap()
    assert 0.1 <= lap.waited <= lap.seconds < 0.3
    assert clock.lap().waited == 0


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmarks' calculation of operations from the sizes alone."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "benchmarks"))
    return importlib.import_module("pair")


class Counter(TorchDispatchMode):
    """By operator, PyTorch's formulas without its tracker of modules, which bears no layer of ours.

    Its formula for the backward pass of a depthwise convolution is that of a full one, so those
    are not counted: like other products they have two as large as the forward one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.convolutions = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet in flop_registry and packet is not torch.ops.aten.convolution_backward:
            count = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            if packet is torch.ops.aten.convolution:
                self.convolutions += count
            else:
                self.products += count
        return out


PATCHES = 2 * (64 // 16) ** 2 * 32 * 3 * 16**2  # of the tiny shape; the image needs no gradient


def _counted(model: Any, images: Tensor, *, frozen: bool = False) -> int:
    """What a real model with our layers does for real predictions and gradients."""
    model.train()
    model.decode_head.set_mask_probs([0.0] * model.decode_head.num_joint_blocks)
    with Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        predictions = model.decode_head.all_predictions(model.extract_feat(images))
        torch.stack(
            [masks.sum() + classes.sum() for masks, classes in predictions]
        ).sum().backward()
    return counter.products + 3 * counter.convolutions - PATCHES * (2 if frozen else 1)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_operations_are_those_of_the_sizes_and_of_a_real_step(
    family: str, pair: ModuleType
) -> None:
    shape = pair.Shape(family, "tiny", size=64, queries=8, classes=5)
    model = pair.make_ours(shape)
    cfg = _config(shape, pair.TINY)
    generator = torch.get_rng_state()
    found = training_flops(cfg, (3, 64, 64), trained=gradients_of(model))
    assert torch.equal(torch.get_rng_state(), generator)
    assert found == _counted(model, torch.randn(1, 3, 64, 64))
    # Each product has two in the backward pass, but that of the patches, which has one.
    forward = pair.forward_flops(shape, predictions=model.decode_head.num_joint_blocks + 1)
    assert found == pytest.approx(3 * forward - PATCHES, rel=1e-9)


def test_operations_are_those_of_a_model_partly_frozen_or_recomputed(pair: ModuleType) -> None:
    shape = pair.Shape("dinov3", "tiny", size=64, queries=8, classes=5)
    images = torch.randn(1, 3, 64, 64)
    frozen = pair.make_ours(shape, backbone={"frozen_blocks": 2})
    cfg = _config(shape, pair.TINY)
    whole = training_flops(cfg, (3, 64, 64), trained=gradients_of(pair.make_ours(shape)))
    part = training_flops(cfg, (3, 64, 64), trained=gradients_of(frozen))
    assert part == _counted(frozen, images, frozen=True) < whole
    spared = {"backbone": {"with_cp": True}, "decode_head": {"recompute_upscale": True}}
    again = pair.make_ours(shape, **spared)
    cfg["backbone"].update(with_cp=True)
    cfg["decode_head"].update(recompute_upscale=True)
    assert training_flops(cfg, (3, 64, 64), trained=gradients_of(again)) == whole
    assert _counted(again, images) > 1.2 * whole


def test_operations_follow_the_size_of_the_images(pair: ModuleType) -> None:
    """DINOv2 then resamples its table of positions."""
    model = pair.make_ours(pair.Shape("dinov2", "tiny", size=64, queries=8, classes=5))
    cfg = _config(pair.Shape("dinov2", "tiny", size=64, queries=8, classes=5), pair.TINY)
    shape = pair.Shape("dinov2", "tiny", size=96, queries=8, classes=5)
    found = training_flops(cfg, (3, 96, 96), trained=gradients_of(model))
    forward = pair.forward_flops(shape, predictions=model.decode_head.num_joint_blocks + 1)
    assert found == pytest.approx(3 * forward - PATCHES * 36 / 16, rel=0.01)


def _config(shape: Any, arch: dict[str, Any]) -> dict[str, Any]:
    kind = {"dinov2": "DINOv2", "dinov3": "DINOv3"}[shape.family]
    sizes = {"arch": dict(arch), "image_size": shape.size, "patch_size": shape.patch_size}
    return {
        "type": "EoMTSegmentor",
        "backbone": {"type": kind, **sizes},
        "decode_head": {
            "type": "EoMTHead",
            "num_classes": shape.classes,
            "num_queries": shape.queries,
        },
    }


def test_utilisation_is_that_of_the_operations_and_the_peak(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    _check_utilisation(tmp_path, data, world=1, options={"steps": 3, "micro": 2})
    text = _text(tmp_path / "run")
    assert re.search(r"mfu: \d+\.\d%", text)
    # The page shows what a run prints, but for losses and blocks, which are more here or there.
    page = (ROOT / "docs" / "watching.md").read_text()
    names = [
        [n for n in re.findall(r"(\w+): ", line) if n != "mfu" and not n[-1].isdigit()]
        for line in (
            re.findall(r"Iter\(train\).*", page)[0],
            re.findall(r"Iter\(train\).*", text)[1],
        )
    ]
    assert set(names[0]) == {name for name in names[1] if not name.startswith("loss_")}


@pytest.mark.parametrize("strategy", [None, pytest.param("FSDP2", marks=pytest.mark.slow)])
def test_speed_is_that_of_all_processes(strategy: str | None, tmp_path: Path) -> None:
    """One of the two is slow, and the other one waits for it."""
    data = make_data(tmp_path / "data", images=8)
    options = {"steps": 3, "strategy": strategy, "micro": 1}
    _check_utilisation(tmp_path, data, world=2, options=options)
    # Four images a step, which lasts half a second or more.
    speed = logged(tmp_path / "run", "images_per_second")
    assert all(1 < value <= 8 for value in speed.values()), speed


def _check_utilisation(tmp_path: Path, data: Any, *, world: int, options: dict[str, Any]) -> None:
    arguments = (str(tmp_path / "run"), data, world, options)
    if world == 1:
        train(*arguments)
    else:
        task = "tests.engine.watch.speed_tasks:train"
        run_ranks(world, task, *arguments, log=tmp_path / "log")
    speed = logged(tmp_path / "run", "images_per_second")
    found = logged(tmp_path / "run", "mfu")
    assert speed.keys() == found.keys() == {2, 3}
    cfg = config(tmp_path / "again", data, **options)
    flops = training_flops(cfg.model, (3, 32, 32), trained=gradients_of(MODELS.build(cfg.model)))
    for step, mfu in found.items():
        assert mfu == pytest.approx(flops * speed[step] / (world * PEAK_TFLOPS * 1e12), rel=1e-3)


def _text(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*.log"))
