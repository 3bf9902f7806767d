"""The same global batch gives the same training, however it is spread over processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from mmseg_eomt.checkpoints.weights_file import read_weights
from mmseg_eomt.engine.sharding import deferred_weights
from tests.apis.tiny import make_data
from tests.engine.sharding_stored import whole_tree
from tests.engine.watch.test_cost import CONFIG
from tests.ranks import run_ranks

EMA = {"type": "EMAHook", "momentum": 0.1}
# What `--ema` is, but for a horizon that a few steps fill.
ANNEALED_EMA = {"type": "EMAHook", "ema_type": "MomentumAnnealingEMA", "gamma": 4}
# Of a loss near 24 in float32, which has 7 digits. Sums over images are added in another order.
LOSS_TOLERANCE = 1e-4
# Of weights, which a step moves by up to 1e-3.
WEIGHT_TOLERANCE = 2e-6


def trained(folder: Path, data: Any, world: int, **options: Any) -> dict[str, Any]:
    """Losses by step, the last checkpoint and the last exported weights of a run."""
    run_ranks(
        world,
        "tests.engine.sharding_tasks:train",
        str(folder),
        data,
        world,
        options,
        log=folder / "log",
    )
    lines = next(folder.glob("2*/vis_data/scalars.json")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    last = (folder / "last_checkpoint").read_text().strip()
    exported = read_weights(folder / "exported" / "last.safetensors")[1]
    stored = whole_tree(folder / Path(last).name)
    return {"losses": losses, "stored": stored, "exported": exported, "name": last}


def assert_equal_runs(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"].keys() == other["losses"].keys()
    for step, loss in one["losses"].items():
        assert other["losses"][step] == pytest.approx(loss, abs=LOSS_TOLERANCE), step
    for part in ("state_dict", "ema_state_dict"):
        assert one["stored"][part].keys() == other["stored"][part].keys()
        for name, value in one["stored"][part].items():
            torch.testing.assert_close(
                other["stored"][part][name], value, atol=WEIGHT_TOLERANCE, rtol=0, msg=name
            )
    for run in (one, other):
        # EMAHook puts the averaged weights there, and those of training under "ema_state_dict".
        averaged = run["stored"]["state_dict"]
        assert run["exported"].keys() == averaged.keys()
        assert all(torch.equal(run["exported"][name], averaged[name]) for name in averaged)


def averaged_from_trained(run: dict[str, Any]) -> float:
    """How far averaged weights are from those of training, at most."""
    trained = run["stored"]["ema_state_dict"]
    averaged = run["stored"]["state_dict"]
    return max(float((trained[f"module.{n}"] - v).abs().max()) for n, v in averaged.items())


def steps_of(run: dict[str, Any]) -> tuple[int, int, float]:
    stored = run["stored"]
    return (
        stored["meta"]["iter"],
        int(next(iter(stored["optimizer"]["state"].values()))["step"]),
        stored["optimizer"]["param_groups"][0]["lr"],
    )


def test_processes_accumulation_and_shards_train_alike(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=8)
    options: dict[str, Any] = {"steps": 6, "hooks": [EMA]}
    one = trained(tmp_path / "one", data, 1, **options)
    # So that a run that stood still would be seen.
    assert averaged_from_trained(one) > 100 * WEIGHT_TOLERANCE
    assert len(one["losses"]) == 6
    split = trained(tmp_path / "split", data, 2, micro=1, **options)  # two micro-batches each
    shards = trained(tmp_path / "shards", data, 2, micro=1, strategy="FSDP2", **options)
    assert split["name"].endswith(".pth") and shards["name"].endswith(".sharded")
    for other in (split, shards):
        assert_equal_runs(one, other)
        assert steps_of(other) == pytest.approx(steps_of(one))
        assert steps_of(other)[:2] == (6, 6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [None, "FSDP2"])
@pytest.mark.parametrize("world", [2, 4])
def test_many_steps_end_at_the_same_weights(
    tmp_path: Path, world: int, strategy: str | None
) -> None:
    data = make_data(tmp_path / "data", images=8)
    options: dict[str, Any] = {"steps": 20, "hooks": [ANNEALED_EMA]}
    one = trained(tmp_path / "one", data, 1, **options)
    assert averaged_from_trained(one) > 100 * WEIGHT_TOLERANCE
    many = trained(tmp_path / "many", data, world, strategy=strategy, **options)
    assert_equal_runs(one, many)


def test_processes_exchange_nothing_before_the_last_micro_batch(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=8)
    counts = {}
    for micro in (2, 1):
        out = tmp_path / str(micro)
        out.mkdir()
        run_ranks(
            2,
            "tests.engine.sharding_tasks:count_exchanges",
            str(out),
            data,
            2,
            {"steps": 4, "micro": micro},
            log=tmp_path / f"log{micro}",
        )
        counts[micro] = [
            [int(count) for count in (out / f"exchanges{rank}.txt").read_text().split()]
            for rank in range(2)
        ]
    # The first steps lay out DDP's buckets.
    assert counts[1][0][2:] == counts[1][1][2:] == counts[2][0][2:] == counts[2][1][2:]
    assert counts[1][0][-1] > 0


ARCH = {"embed_dims": 64, "depth": 4, "num_heads": 2, "patch_size": 8}


def built() -> nn.Module:
    cfg = Config.fromfile(CONFIG).model
    cfg.backbone.update(pretrained=None, arch=dict(ARCH))
    cfg.decode_head.num_classes = 5
    model: nn.Module = MODELS.build(cfg)
    return model


def test_deferred_weights_are_those_of_an_ordinary_construction() -> None:
    torch.manual_seed(3)
    ordinary = dict(built().named_parameters())
    drawn = torch.rand(4)
    torch.manual_seed(3)
    with deferred_weights() as weights:
        model = built()
    assert torch.equal(torch.rand(4), drawn)
    deferred = dict(model.named_parameters())
    assert deferred.keys() == ordinary.keys()
    assert sum(p.is_meta for p in deferred.values()) > 10
    # In any order, and more than once.
    for name in [*reversed(deferred), *deferred]:
        assert torch.equal(weights.value(deferred[name]), ordinary[name]), name
    assert "weight" in nn.Linear(2, 2).state_dict() and not nn.Linear(100, 100).weight.is_meta
