"""Averaged weights: what is validated is what is exported, bit for bit, and nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmseg.registry import HOOKS, METRICS
from safetensors.torch import load_file
from torch import Tensor, nn

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.apis.run import run_training
from mmseg_eomt.apis.train import resolve_training
from mmseg_eomt.checkpoints.weights_file import read_training_notes, save_weights
from mmseg_eomt.header import ModelHeader
from tests.apis.tiny import FEW_FILES, make_data, tiny_call, tiny_header

MOMENTUM = 0.3
SCORES = [20.0, 90.0, 50.0]


@METRICS.register_module(force=True)
class ScriptedMetric(BaseMetric):  # type: ignore[misc]
    """The second validation is the best one."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = iter(SCORES)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {"mIoU": next(self.scores)}


@HOOKS.register_module(force=True)
class WatchWeights(Hook):  # type: ignore[misc]
    """Averages the weights after each step on its own, and notes what is validated."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.averages: list[dict[str, Tensor]] = []
        self.raw: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []
        self.ema_at_start: dict[str, Tensor] = {}

    def before_train(self, runner: Any) -> None:
        ema = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
        self.ema_at_start = _copy(ema.ema_model.module)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        raw = _copy(runner.model)
        for name, value in raw.items():
            old = self.average.get(name, value)
            self.average[name] = torch.lerp(old, value, MOMENTUM)
        self.raw.append(raw)
        self.averages.append(dict(self.average))

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0:
            self.validated.append(_copy(runner.model))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _data_bytes(path: Path) -> int:
    """Size of a safetensors file without its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _run(tmp_path: Path, *, priority: str) -> tuple[Path, WatchWeights]:
    start = tmp_path / "start.safetensors"
    torch.manual_seed(3)
    save_weights(start, build_segmentor(tiny_header()), tiny_header())
    call = tiny_call(make_data(tmp_path / "data"), checkpoint=start, ema=MOMENTUM, **FEW_FILES)
    call["model_args"] = {**call["model_args"], "lr": 0.05, "warmup": (0, 0)}
    out = tmp_path / "run"
    cfg: Any = resolve_training(out=out, **call).cfg
    for hook in cfg.custom_hooks:
        if hook["type"] == "EMAHook":
            hook["priority"] = priority
    cfg.custom_hooks = [*cfg.custom_hooks, {"type": "WatchWeights"}]
    cfg.train_cfg.val_interval = 1
    cfg.val_evaluator = {"type": "ScriptedMetric"}
    runner = run_training(cfg)
    watch = next(hook for hook in runner.hooks if isinstance(hook, WatchWeights))
    return out / "exported", watch


# HIGH: EMAHook puts the raw weights back before ExportWeightsHook hears of the score.
@pytest.mark.parametrize("priority", ["NORMAL", pytest.param("HIGH", marks=pytest.mark.slow)])
def test_best_and_last_are_the_averaged_weights(priority: str, tmp_path: Path) -> None:
    exported, watch = _run(tmp_path, priority=priority)
    start = load_file(tmp_path / "start.safetensors")
    head = "decode_head.class_head."
    assert _same(
        *(
            {n: v for n, v in state.items() if not n.startswith(head)}
            for state in (watch.ema_at_start, start)
        )
    )
    assert len(watch.validated) == len(SCORES)
    for step, validated in enumerate(watch.validated):
        assert _same(validated, watch.averages[step]), f"validation after step {step + 1}"
    best, last = (load_file(exported / f"{name}.safetensors") for name in ("best", "last"))
    assert _same(best, watch.averages[1])
    assert _same(last, watch.averages[2])
    assert not _same(best, watch.raw[1]) and not _same(last, watch.raw[2])
    assert read_training_notes(exported / "best.safetensors") == {
        "step": 2,
        "metrics": {"mIoU": 90.0},
    }
    for name in ("best", "last"):
        parameters = sum(value.numel() * 4 for value in watch.raw[0].values())
        assert _data_bytes(exported / f"{name}.safetensors") == parameters


@pytest.mark.parametrize(
    "header",
    [
        tiny_header(family="dinov2"),
        tiny_header(),
        tiny_header(family="timm", architecture="eva02_tiny_patch14_224", patch_size=14),
        tiny_header(family="timm", architecture="vit_tiny_patch16_224", patch_size=16),
    ],
    ids=["dinov2", "dinov3", "eva02", "vit"],
)
def test_a_file_holds_the_parameters_and_nothing_else(header: ModelHeader, tmp_path: Path) -> None:
    model, path = build_segmentor(header), tmp_path / "w.safetensors"
    save_weights(path, model, header)
    stored = load_file(path)
    assert stored.keys() == dict(model.named_parameters()).keys()
    assert _data_bytes(path) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_real_size_is_that_of_its_parameters(tmp_path: Path) -> None:
    header = tiny_header(architecture="vits16", patch_size=16, num_joint_blocks=3, num_queries=100)
    model, path = build_segmentor(header), tmp_path / "w.safetensors"
    save_weights(path, model, header)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    assert parameters > 80e6
    assert parameters < path.stat().st_size < 1.01 * parameters
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        names = set(json.loads(file.read(length))) - {"__metadata__"}
    assert not [name for name in names if "optim" in name or "ema" in name]


@pytest.mark.parametrize(
    ("ema", "expected"),
    [
        (None, []),
        (False, []),
        (True, [{"type": "EMAHook", "ema_type": "MomentumAnnealingEMA"}]),
        (0.01, [{"type": "EMAHook", "momentum": 0.01}]),
    ],
)
def test_one_argument_switches_it(ema: Any, expected: list[Any], tmp_path: Path) -> None:
    call = tiny_call(make_data(tmp_path / "data"), ema=ema)
    cfg: Any = resolve_training(out=tmp_path / "run", **call).cfg
    found = [dict(hook) for hook in cfg.custom_hooks if hook["type"] == "EMAHook"]
    assert found == expected


@pytest.mark.parametrize("ema", [0, 1, 1.5, -0.1, "0.1"])
def test_a_share_outside_0_and_1_is_refused(ema: Any, tmp_path: Path) -> None:
    call = tiny_call(make_data(tmp_path / "data"), ema=ema)
    with pytest.raises(ValueError, match=r"ema is .*between 0 and 1"):
        resolve_training(out=tmp_path / "run", **call)
