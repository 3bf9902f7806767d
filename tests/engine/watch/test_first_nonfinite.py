"""Over two processes: who has the fault is named, nothing moves, and the capture shows it again."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.apis.tiny import make_data
from tests.engine.watch.gloo_watch import FAULTS, STEP, WEIGHT

ROOT = Path(__file__).parents[3]
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "data.yaml").write_text(yaml.safe_dump(make_data(folder / "data", images=8)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).with_name("gloo_watch.py")), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return {
        name: [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(2)]
        for name in FAULTS
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "words"),
    [
        ("nan_image", 1, "the images were not finite (1 NaN"),
        ("huge_weight", 0, "in the forward pass of backbone.vit.blocks.1.mlp.fc1,"),
        ("nan_weight", 0, f"the weight {WEIGHT} was not finite before the step (1 NaN"),
    ],
)
def test_a_planted_fault_is_found_where_it_is(
    fault: str, rank: int, words: str, folder: Path, results: Results
) -> None:
    for result in results[fault]:
        assert result["iter"] == STEP  # on both processes
        # The planted NaN itself compares as unequal.
        assert result["moved"] == (1 if fault == "nan_weight" else 0)
        assert result["error"].startswith(f"NonFiniteError: Step {STEP + 1}: ")
        assert words in result["error"]
        assert f"Rank {rank} of 2: " in result["error"]
        assert (f"Rank {1 - rank} of 2: " in result["error"]) == (fault != "nan_image")
    assert results[fault][0]["error"] == results[fault][1]["error"]
    (named,) = re.findall(rf"Rank {rank} of 2: .*? Images: (.*?\.png)", results[fault][0]["error"])
    assert Path(named.split(", ")[0]).is_file()
    assert ("," in named) is False or fault == "nan_weight"
    (capture,) = (folder / fault / "nonfinite").glob("*.pth")
    assert capture.name == f"step_{STEP + 1:06d}_rank{rank}.pth"
    assert str(capture) in results[fault][0]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nan_image", "huge_weight", "nan_weight"])
def test_a_capture_replays_to_the_same_module(
    fault: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (capture,) = (folder / fault / "nonfinite").glob("*.pth")
    torch.load(capture, weights_only=True)
    main = runpy.run_path(str(ROOT / "tools" / "replay.py"))["main"]
    assert main([str(capture), "--device", "cpu", "--debug"]) == 0
    then, now = re.findall(r"(?:In training|Now): +(.*)\.\n", capsys.readouterr().out)
    assert then == now


@pytest.mark.slow
def test_switched_off_it_lets_training_go_on(folder: Path, results: Results) -> None:
    for result in results["off"]:
        assert result["error"] is None
        assert result["iter"] == 5
    assert not (folder / "off" / "nonfinite").exists()


@pytest.mark.slow
def test_a_weight_that_differs_is_named(results: Results) -> None:
    for result in results["hash"]:
        assert result["error"].startswith(f"WeightsDifferError: After step {STEP + 1}: ")
        assert f"the weights of {WEIGHT} on rank 1 are not those" in result["error"]
        assert result["iter"] == STEP
