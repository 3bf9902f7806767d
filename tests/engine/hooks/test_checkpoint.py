"""What stays in a run's folder, and that a copy of it is a run of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from mmseg_eomt.engine.hooks import SafeCheckpointHook
from tests.engine.engine_toys import runner
from tests.engine.exact import Crash, compare, exact_runner

BEST = 1e9


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_mmengines_hook_is_replaced_and_old_checkpoints_go_last(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    class Watch(Hook):  # type: ignore[misc]
        def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
            seen.append({name for name in names(tmp_path) if name.startswith("iter_")})

    given = {"type": "CheckpointHook", "interval": 1, "by_epoch": False, "max_keep_ckpts": 1}
    run = runner(tmp_path, steps=3, hooks=[Watch()], checkpoint=given)
    assert any(isinstance(hook, SafeCheckpointHook) for hook in run.hooks)
    run.train()
    assert seen == [set(), {"iter_1.pth"}, {"iter_2.pth"}]
    assert {name for name in names(tmp_path) if name.startswith("iter_")} == {"iter_3.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "iter_3.pth"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out_dir": "elsewhere"}, r"checkpoint\.out_dir is not offered.*--work-dir"),
        ({"by_epoch": True}, "by_epoch is True"),
        ({"filename_tmpl": "step{}.pth"}, "iter_N.pth"),
        ({"published_keys": ["meta"]}, "exported/best"),
        ({"backend_args": {"backend": "petrel"}}, "rename"),
    ],
)
def test_keys_that_would_lose_checkpoints_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SafeCheckpointHook(interval=1, **given)


def test_a_copied_run_resumes_as_the_copy_and_spares_the_original(tmp_path: Path) -> None:
    original, copy, whole = tmp_path / "a", tmp_path / "b", tmp_path / "whole"
    options: dict[str, Any] = {"steps": 9, "checkpoint_args": {"max_keep_ckpts": 1}}
    exact_runner(whole, **options).train()
    with pytest.raises(Crash):
        exact_runner(original, crash=4, **options).train()
    before = {path: path.read_bytes() for path in original.iterdir() if path.is_file()}
    best = {path.name for path in original.glob("best_*.pth")}
    assert len(best) == 1
    shutil.copytree(original, copy)
    exact_runner(copy, resume=True, **options).train()
    assert {path: path.read_bytes() for path in original.iterdir() if path.is_file()} == before
    assert compare(whole / "iter_9.pth", copy / "iter_9.pth") == []
    # The copy's best is a later one, and it replaced the copied one.
    assert {p.name for p in copy.glob("best_*")} == {p.name for p in whole.glob("best_*")} != best
    for path in copy.glob("*.pth"):
        assert str(tmp_path) not in str(torch.load(path, weights_only=True)["message_hub"])


def test_the_best_score_so_far_survives_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        exact_runner(tmp_path, steps=9, crash=4).train()
    path = tmp_path / "iter_3.pth"
    checkpoint = torch.load(path, weights_only=True)
    info = checkpoint["message_hub"]["runtime_info"]
    assert info["best_ckpt"] == "best_mIoU_iter_3.pth"
    info["best_score"] = BEST  # no later one is better
    torch.save(checkpoint, path)
    again = exact_runner(tmp_path, steps=9, resume=True)
    again.train()
    assert again.message_hub.get_info("best_score") == BEST
    assert [path.name for path in tmp_path.glob("best_*.pth")] == ["best_mIoU_iter_3.pth"]


def test_a_path_stored_as_best_deletes_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "best_outside.pth"
    outside.touch()
    run = tmp_path / "run"
    with pytest.raises(Crash):
        exact_runner(run, steps=6, crash=4).train()
    for stored in (str(outside), "last_checkpoint"):
        checkpoint = torch.load(run / "iter_3.pth", weights_only=True)
        checkpoint["message_hub"]["runtime_info"].update(best_ckpt=stored, best_score=-1e9)
        torch.save(checkpoint, run / "iter_3.pth")
        exact_runner(run, steps=6, resume=True).train()
        assert outside.exists() and (run / "last_checkpoint").exists()
        (run / "iter_6.pth").unlink()


def test_another_runs_checkpoints_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    exact_runner(tmp_path, steps=6).train()
    with pytest.raises(Crash):
        exact_runner(tmp_path, steps=6, crash=4).train()  # begun anew in the same folder
    assert {"iter_3.pth", "iter_3.pth.set_aside", "iter_6.pth.set_aside"} <= names(tmp_path)
    again = exact_runner(tmp_path, steps=6, resume=True)
    again.train()
    assert again.model.decode_head.seen[0][0] == 3
