"""Checkpoints in shards: any number of processes reads them, and nothing in them changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_eomt.checkpoints.convert import convert_checkpoint
from mmseg_eomt.checkpoints.run_folder import newest_intact, read_resumable
from mmseg_eomt.checkpoints.sharded import is_sharded_folder, iterate_stored, read_rest
from mmseg_eomt.checkpoints.weights_file import read_weights
from tests.apis.tiny import make_data
from tests.engine.sharding_stored import whole_tree
from tests.ranks import run_ranks

EMA = {"type": "EMAHook", "momentum": 0.1}
TRAIN = "tests.engine.sharding_tasks:train"


def tensors(tree: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f"{name}/{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from tensors(value, f"{name}/{index}")


def assert_bit_equal(one: Path, other: Path) -> None:
    """Weights, averaged weights and optimiser state."""
    parts = ("state_dict", "ema_state_dict", "optimizer")
    found, expected = whole_tree(other), whole_tree(one)
    for part in parts:
        left, right = dict(tensors(expected[part])), dict(tensors(found[part]))
        assert left.keys() == right.keys() and left
        for name, value in left.items():
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), f"{part}{name}"
    assert expected["optimizer"]["param_groups"] == found["optimizer"]["param_groups"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run of two processes with checkpoints in shards, and its data."""
    folder = tmp_path_factory.mktemp("shards")
    data = make_data(folder / "data", images=8)
    options = {"steps": 4, "strategy": "FSDP2", "every": 2, "hooks": [EMA]}
    run_ranks(2, TRAIN, str(folder / "run"), data, 2, options, log=folder / "log")
    return folder / "run", data


def rewritten(source: Path, data: Any, out: Path, *, world: int, strategy: str | None) -> Path:
    """The checkpoint that `world` processes write when they have resumed from `source`."""
    out.mkdir()
    end = {"type": "WriteAtOnce", "folder": str(out)}
    options = {
        "steps": 4, "strategy": strategy, "every": 2, "hooks": [EMA, end],
        "resume_from": str(source),
    }  # fmt: skip
    run_ranks(world, TRAIN, str(out / "run"), data, world, options, log=out / "log")
    (path,) = out.glob("iter_*")
    return path


def test_other_numbers_of_processes_read_it_bit_by_bit(
    run: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, data = run
    first = folder / "iter_2.sharded"
    one = rewritten(first, data, tmp_path / "one", world=1, strategy=None)
    assert one.suffix == ".pth"
    assert_bit_equal(first, one)
    back = rewritten(one, data, tmp_path / "back", world=2, strategy="FSDP2")
    assert back.suffix == ".sharded"
    assert_bit_equal(first, back)


@pytest.mark.slow
def test_four_two_one_and_back_keep_every_bit(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=8)
    options = {"steps": 4, "strategy": "FSDP2", "every": 2, "hooks": [EMA]}
    run_ranks(4, TRAIN, str(tmp_path / "run"), data, 4, options, log=tmp_path / "log")
    first = path = tmp_path / "run" / "iter_2.sharded"
    for number, (world, strategy) in enumerate([(2, "FSDP2"), (1, None), (2, None), (4, "FSDP2")]):
        path = rewritten(path, data, tmp_path / str(number), world=world, strategy=strategy)
        assert_bit_equal(first, path)


def test_a_crashed_run_continues_exactly(run: tuple[Path, Any], tmp_path: Path) -> None:
    folder, data = run
    out = tmp_path / "run"
    options: dict[str, Any] = {"steps": 4, "strategy": "FSDP2", "every": 2}
    crash = {"type": "EndBefore", "step": 3}
    run_ranks(2, TRAIN, str(out), data, 2, {**options, "hooks": [EMA, crash]},
              log=tmp_path / "log")  # fmt: skip
    assert newest_intact(out) == out / "iter_2.sharded"
    left = out / ".iter_3.sharded.tmp"
    left.mkdir()
    run_ranks(2, TRAIN, str(out), data, 2, {**options, "hooks": [EMA], "resume": True},
              log=tmp_path / "log2")  # fmt: skip
    assert not left.exists()
    assert_bit_equal(folder / "iter_4.sharded", out / "iter_4.sharded")


def test_one_command_makes_lean_weights(run: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = run
    source = folder / "iter_4.sharded"
    lean = tmp_path / "lean.safetensors"
    convert_checkpoint(source, out=lean)
    header, state = read_weights(lean)
    stored = whole_tree(source)["state_dict"]
    assert state.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    # The run itself exported the same weights, gathered while they were spread.
    exported_header, exported = read_weights(folder / "exported" / "last.safetensors")
    assert header.classes == exported_header.classes
    # EMAHook puts the averaged weights there, and those of training under "ema_state_dict".
    assert exported.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in exported.items())


@pytest.mark.parametrize("harm", ["missing", "short", "no manifest", "no run.pth"])
def test_what_a_kill_or_copy_left_half_is_passed_over(
    run: tuple[Path, Any], tmp_path: Path, harm: str
) -> None:
    folder, _ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    newest = copy / "iter_4.sharded"
    shard = sorted(newest.glob("*.safetensors"))[0]
    if harm == "missing":
        shard.unlink()
    elif harm == "short":
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        (newest / ("manifest.json" if harm == "no manifest" else "run.pth")).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="iter_4"):
        read_resumable(newest)
    assert newest_intact(copy) == copy / "iter_2.sharded"


def test_a_flipped_bit_is_found(run: tuple[Path, Any], tmp_path: Path) -> None:
    copy = tmp_path / "iter_4.sharded"
    shutil.copytree(run[0] / "iter_4.sharded", copy)
    shard = sorted(copy.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        convert_checkpoint(copy, out=tmp_path / "lean.safetensors")
    assert not (tmp_path / "lean.safetensors").exists()


def test_a_manifest_reaches_no_other_folder(run: tuple[Path, Any], tmp_path: Path) -> None:
    copy = tmp_path / "iter_4.sharded"
    shutil.copytree(run[0] / "iter_4.sharded", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside"):
        read_rest(copy)


def test_each_process_wrote_its_share(run: tuple[Path, Any]) -> None:
    path = run[0] / "iter_4.sharded"
    assert is_sharded_folder(path)
    sizes = [shard.stat().st_size for shard in path.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    query = read_rest(path)["state_dict"]["decode_head.query.weight"]
    assert next(iterate_stored(path, [query])).shape == (4, 32)
