"""The comparison of starts: what it counts, and that it trains what is missing and nothing else."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.apis.tiny import CLASSES, make_data

PROJECT = Path(__file__).parents[2]
CONFIG = PROJECT.parents[1] / "configs" / "eomt" / "tiny_quickstart.py"
TOOL: dict[str, Any] = runpy.run_path(str(PROJECT / "tools" / "compare.py"))


def scores(folder: Path, part: str, *records: dict[str, float]) -> None:
    path = folder / part / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")


def test_scores_of_a_resumed_run_are_those_of_all_its_parts(tmp_path: Path) -> None:
    train = {"loss": 1.0, "step": 10}
    scores(tmp_path, "20260101_000000", train, {"mIoU": 10.0, "step": 100})
    scores(tmp_path, "20260102_000000", {"mIoU": 11.0, "step": 100}, {"mIoU": 20.0, "step": 200})
    assert TOOL["read_scores"](tmp_path) == {100: 11.0, 200: 20.0}


def test_gains_are_differences_of_the_same_seed() -> None:
    curves = {
        "none": {"0": {5: 1.0, 10: 20.0}, "1": {10: 30.0}},
        "own": {"0": {10: 23.0}, "1": {10: 35.0}},
    }
    found = TOOL["summarise"](curves)
    assert found["none"]["mIoU"] == {"0": 20.0, "1": 30.0}
    assert (found["none"]["mean"], found["none"]["gain"]) == (25.0, 0.0)
    assert (found["own"]["mean"], found["own"]["gain"]) == (29.0, 4.0)
    assert found["none"]["std"] == pytest.approx(50**0.5)
    assert found["own"]["gain_std"] == pytest.approx(2**0.5)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / run / "backbone.safetensors" for run in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    names = TOOL["name_starts"](["none", *map(str, paths)])
    assert names == {"none": "none", "backbone": str(paths[0]), "b_backbone": str(paths[1])}


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (["none", "no/such.safetensors"], r"no/such\.safetensors: no such file of weights"),
        (["timm", "timm"], "--starts has timm twice"),
    ],
)
def test_faulty_starts_are_named(starts: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        TOOL["name_starts"](starts)


@pytest.mark.slow
def test_what_is_done_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data", images=8)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({**data, "classes": dict(CLASSES)}))
    out = tmp_path / "out"

    def run(*more: str, steps: int = 2) -> int:
        words = [str(CONFIG), "--data", str(tmp_path / "data.yaml"), "--out", str(out), *more]
        words += ["--train-options", "--cfg-options", f"train_cfg.max_iters={steps}"]
        words += ["train_cfg.val_interval=1", "train_cfg.global_batch_size=2"]
        code: int = TOOL["main"]([*words, "train_dataloader.batch_size=2"])
        return code

    assert run("--seeds", "0") == 0
    first = json.loads((out / "comparison.json").read_text())
    assert set(first["none"]["curves"]["0"]) == {"1", "2"}
    with Image.open(out / "comparison.png") as picture:
        assert picture.size == (840, 540)
    capsys.readouterr()
    assert run("--seeds", "0", "1") == 0
    assert capsys.readouterr().out.count("training") == 1
    both = json.loads((out / "comparison.json").read_text())
    assert both["none"]["mIoU"]["0"] == first["none"]["mIoU"]["0"]
    assert set(both["none"]["mIoU"]) == {"0", "1"}
    assert run("--seeds", "0", steps=3) == 2
    assert "other settings (train_options)" in capsys.readouterr().err
    assert run("--seeds", "0", "--starts", "no-such-hub-name") == 2
    assert "training failed (2)" in capsys.readouterr().err
