"""The number of processes does not change the step: centring and KoLeo see the images of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.across_ranks import one_step

from tests.ranks import run_ranks


@pytest.mark.parametrize("centring", ["softmax", "sinkhorn"])
def test_three_processes_make_the_step_of_one(centring: str, tmp_path: Path) -> None:
    path = tmp_path / "step.pth"
    run_ranks(3, "models.across_ranks:save_step", centring, 6, str(path), log=tmp_path)
    shared = torch.load(path, weights_only=True)
    alone = one_step(centring, 6)
    assert shared.keys() == alone.keys()
    assert "loss_koleo" in alone
    for name, value in alone.items():
        # A number for the log: each process has its own number of masked patches.
        rtol = 0.03 if name == "teacher_patch_entropy" else 2e-4
        torch.testing.assert_close(
            shared[name], value, rtol=rtol, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
