"""The calculation of memory against what processes really hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from mmseg_eomt.engine.watch.cost import memory_of_process
from tests.apis.tiny import make_data
from tests.ranks import run_ranks

CONFIG = Path(__file__).parents[3] / "configs" / "eomt" / "dinov3_vit7b16_ade20k.py"
MODEL_ARGS = {"arch": {"embed_dims": 192, "depth": 6, "num_heads": 3, "patch_size": 8}}


def large_model() -> nn.Module:
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.pretrained = None
    cfg.model.decode_head.num_classes = 150
    with torch.device("meta"):
        model: nn.Module = MODELS.build(cfg.model)
    return model


def test_the_7b_config_states_what_the_calculation_gives() -> None:
    model = large_model()
    text = CONFIG.read_text()
    tokens = 1 + 4 + (512 // 16) ** 2 + 100
    for world in (1, 4, 8, 16):
        memory = memory_of_process(model, world_size=world, tokens=tokens)
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == [str(world)])
        numbers = (memory.shards, memory.gathered, memory.activations, memory.total)
        assert [float(cell) for cell in row[1:]] == [round(n / 1e9, 1) for n in numbers]


def test_processes_hold_what_the_calculation_says(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=4)
    out = tmp_path / "run"
    out.mkdir()
    options: dict[str, Any] = {
        "strategy": "FSDP2",
        "steps": 1,
        "hooks": [{"type": "EMAHook"}],
        "model_args": MODEL_ARGS,
    }
    run_ranks(
        2, "tests.engine.sharding_tasks:measure_storage", str(out), data, 2, options,
        log=tmp_path / "log",
    )  # fmt: skip
    found = json.loads((out / "storage0.json").read_text())
    # Two processes share all sizes evenly or nearly so; the first has the larger half.
    assert found["shards"] == found["calculated"]


def test_no_process_ever_holds_the_whole_model(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=4)
    out = tmp_path / "run"
    out.mkdir()
    arch = {"embed_dims": 512, "depth": 16, "num_heads": 8, "patch_size": 8}
    options = {"strategy": "FSDP2", "model_args": {"arch": arch}}
    run_ranks(
        2, "tests.engine.sharding_tasks:measure_memory", str(out), data, 2, options,
        log=tmp_path / "log",
    )  # fmt: skip
    for rank in range(2):
        peak, own = map(int, (out / f"memory{rank}.txt").read_text().split())
        assert own > 90e6  # half of a model of 200 MB
        assert peak < 1.5 * own, (peak, own)
