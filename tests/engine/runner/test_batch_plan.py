from __future__ import annotations

import pytest
import torch

from mmseg_eomt.engine.runner import BatchPlan, plan_batches
from mmseg_eomt.engine.runner.batch_plan import merge_batches


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
