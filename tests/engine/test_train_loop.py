from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from mmseg_eomt.engine.mixed_precision import NonFiniteError
from mmseg_eomt.engine.train_loop import BatchPlan, merge_batches, plan_batches
from tests.engine.engine_toys import CountingSampler, ToyData, loader, logged, runner

MASKS = {"type": "MaskAnnealingHook"}


class Stopped(RuntimeError):
    pass


class StopAt(Hook):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.step:
            raise Stopped


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_micro_batches_train_like_one_big_batch(tmp_path: Path) -> None:
    big = runner(tmp_path / "big", global_batch_size=4, batch_size=4)
    small = runner(tmp_path / "small", global_batch_size=4, batch_size=1)
    big.train()
    small.train()
    assert small.train_loop.plan.accumulate == 4
    torch.testing.assert_close(weights(small.model), weights(big.model), rtol=1e-4, atol=1e-6)
    assert small.model.prepared == [4] * 6
    assert big.model.prepared == []
    a, b = logged(tmp_path / "big", "loss"), logged(tmp_path / "small", "loss")
    assert set(a) == {2, 4, 6}
    assert a == pytest.approx(b, rel=1e-5)
    norms = logged(tmp_path / "big", "grad_norm"), logged(tmp_path / "small", "grad_norm")
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_every_step_updates_once_and_counts_once(tmp_path: Path) -> None:
    run = runner(tmp_path, steps=5, global_batch_size=6, batch_size=2)
    run.train()
    assert run.iter == 5
    steps = {int(state["step"]) for state in run.optim_wrapper.optimizer.state.values()}
    assert steps == {5}
    assert [(step, seed) for step, seed, _ in run.model.decode_head.seen] == [
        (step, 5) for step in range(5)
    ]


def test_resume_gives_the_unbroken_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"global_batch_size": 4, "batch_size": 2, "interval": 1}
    options["warmup"] = (0.2, 0.2)
    whole = runner(tmp_path / "whole", steps=9, **options)
    whole.train()
    # Stopped after five of nine steps, as by a crash; the last checkpoint is of step three.
    first = runner(tmp_path / "parts", steps=9, hooks=[StopAt(5), MASKS], **options)
    with pytest.raises(Stopped):
        first.train()
    second = runner(tmp_path / "parts", steps=9, resume=True, **options)
    second.train()
    assert second.iter == 9
    torch.testing.assert_close(weights(second.model), weights(whole.model), rtol=0, atol=0)
    for key in ("lr_head", "lr_backbone", "mask_prob_block0", "mask_prob_block1", "loss"):
        expected = logged(tmp_path / "whole", key)
        assert set(expected) == set(range(1, 10))
        assert logged(tmp_path / "parts", key) == pytest.approx(expected, rel=1e-6)
    assert [step for step, _, _ in second.model.decode_head.seen] == list(range(3, 9))
    assert second.model.decode_head.seen == whole.model.decode_head.seen[3:]


def test_resume_jumps_or_reads_past_seen_data(tmp_path: Path) -> None:
    data = ToyData()
    train = loader(batch_size=2, data=data, sampler=CountingSampler(data))
    run = runner(tmp_path, global_batch_size=4, batch_size=2, train=train)
    run.train()
    again = runner(tmp_path, steps=8, global_batch_size=4, batch_size=2, train=train, resume=True)
    again.train()
    assert again.train_dataloader.sampler.start == 6 * 4

    plain = loader(batch_size=2, data=data, sampler=torch.utils.data.SequentialSampler(data))
    folder = tmp_path / "plain"
    runner(folder, global_batch_size=4, batch_size=2, train=plain).train()
    seen = runner(folder, steps=9, global_batch_size=4, batch_size=2, train=plain, resume=True)
    seen.train()
    assert seen.iter == 9


def test_a_batch_larger_than_the_data_is_one_clear_error(tmp_path: Path) -> None:
    data = ToyData(size=3)
    train = loader(batch_size=4, data=data, sampler=torch.utils.data.SequentialSampler(data))
    with pytest.raises(ValueError, match=r"3 images, 1 process.* batches of 4.*at most 3"):
        runner(tmp_path, train=train).train()


def test_non_finite_step_is_named_before_weights_move(tmp_path: Path) -> None:
    data = ToyData(bad=6)  # in the second batch of four
    train = loader(batch_size=4, data=data)
    run = runner(tmp_path, train=train, interval=50)
    good = runner(tmp_path / "good", steps=1)
    with pytest.raises(NonFiniteError, match=r"(?s)Step 2: .*images/6\.png"):
        run.train()
    assert torch.isfinite(weights(run.model)).all()
    good.train()
    assert run.iter == 1


def test_fp16_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    train = loader(batch_size=4, data=ToyData(bad=6))
    run = runner(tmp_path, train=train, interval=50, optim={"precision": "fp16"})
    with pytest.raises(NonFiniteError, match=r"(?s)Step 2: .*images/6\.png"):
        run.train()
    assert torch.isfinite(weights(run.model)).all()


def test_other_wrappers_and_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave accumulative_counts out"):
        runner(tmp_path, batch_size=2, optim={"accumulative_counts": 4}).train()
    with pytest.raises(ValueError, match="MixedPrecisionOptimWrapper"):
        stock = {"type": "OptimWrapper", "precision": None}
        run = runner(tmp_path, batch_size=2, optim=stock)
        run.optim_wrapper.pop("precision")
        run.train()


def test_validation_runs_at_its_interval_and_after_the_last_step(tmp_path: Path) -> None:
    run = runner(tmp_path, steps=7, with_val=True)
    run.train()
    assert set(logged(tmp_path, "count")) == {3, 6, 7}


@pytest.mark.parametrize(
    ("size", "world", "most", "micro", "accumulate"),
    [(16, 1, 16, 16, 1), (16, 1, 4, 4, 4), (16, 4, 16, 4, 1), (16, 4, 2, 2, 2), (1, 1, 8, 1, 1)],
)
def test_global_batch_is_spread(
    size: int, world: int, most: int, micro: int, accumulate: int
) -> None:
    plan = plan_batches(size, world_size=world, batch_size=most)
    assert plan == BatchPlan(size, world, micro, accumulate)


@pytest.mark.parametrize(
    ("size", "world", "most", "words"),
    [
        (16, 3, 4, "multiple of 3"),
        (16, 1, 6, r"one of \[1, 2, 4\]"),
        (0, 1, 4, "global_batch_size is 0"),
        (16, 1, 0, "batch_size is 0"),
        (16, 1, 2.5, "batch_size is 2.5"),
    ],
)
def test_uneven_batches_name_the_mend(size: int, world: int, most: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan_batches(size, world_size=world, batch_size=most)


def test_hooks_see_the_whole_step() -> None:
    merged = merge_batches(
        [{"inputs": [1, 2], "x": torch.zeros(2)}, {"inputs": [3], "x": torch.ones(1)}]
    )
    assert merged["inputs"] == [1, 2, 3]
    assert merged["x"].tolist() == [0.0, 0.0, 1.0]
