"""Options of a run that change how blocks run, with weights in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.apis.tiny import make_data
from tests.engine.test_sharding import EMA, assert_equal_runs, trained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options", [{"model_args": {"with_cp": True}}, {"compiled": True}], ids=["with_cp", "compiled"]
)
def test_blocks_that_recompute_or_are_compiled_train_alike(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    data = make_data(tmp_path / "data", images=8)
    shared: dict[str, Any] = {"steps": 6, "hooks": [EMA]}
    one = trained(tmp_path / "one", data, 1, **shared)
    shards = trained(tmp_path / "shards", data, 2, strategy="FSDP2", **shared, **options)
    assert_equal_runs(one, shards)


def test_bfloat16_of_shards_is_that_of_autocast(tmp_path: Path) -> None:
    """Blocks gather weights rounded to bfloat16, where autocast rounds them at each product."""
    data = make_data(tmp_path / "data", images=8)
    shared: dict[str, Any] = {"steps": 6, "hooks": [EMA], "precision": "bf16"}
    exact = trained(tmp_path / "exact", data, 2, **{**shared, "precision": "fp32"})
    whole = trained(tmp_path / "whole", data, 2, **shared)
    shards = trained(tmp_path / "shards", data, 2, strategy="FSDP2", **shared)
    # As far from autocast as autocast is from float32, in losses near 24.
    for step, loss in whole["losses"].items():
        assert shards["losses"][step] == pytest.approx(loss, rel=5e-3), step
        assert exact["losses"][step] == pytest.approx(loss, rel=5e-3), step
    assert shards["losses"] != exact["losses"]  # it did compute in bfloat16
    for name, weight in shards["stored"]["state_dict"].items():
        assert weight.dtype == whole["stored"]["state_dict"][name].dtype, name
        if weight.dtype.is_floating_point:
            assert weight.dtype == torch.float32, name
