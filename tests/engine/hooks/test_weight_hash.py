"""A hash of bits and places, compared over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from mmseg_eomt.engine.hooks.weight_hash import WeightsDifferError, check_equal_weights, hash_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_any_bit_and_any_order_changes_the_hash(dtype: torch.dtype) -> None:
    value = (torch.arange(1, 601) * 3).to(dtype).view(20, 30)
    first = int(hash_bits(value))
    assert int(hash_bits(value.clone())) == first
    for place in (0, 7, 599):
        other = value.clone()
        other.view(-1)[place] += 4
        assert int(hash_bits(other)) != first
    swapped = value.clone()
    swapped[[0, 1]] = value[[1, 0]]
    assert int(hash_bits(swapped)) != first


def test_zero_has_a_sign() -> None:
    assert int(hash_bits(torch.tensor([0.0]))) != int(hash_bits(torch.tensor([-0.0])))


def compare(rank: int, world: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert check_equal_weights(model, when="Before step 1") == 4
    for odd in range(world):
        with torch.no_grad():
            model[1].weight[0, 2] += 1e-6 if rank == odd else 0
        with pytest.raises(
            WeightsDifferError, match=rf"of 1\.weight on rank {odd} are not"
        ) as info:
            check_equal_weights(model, when="After step 9")
        assert "1 of 4 parameters differ" in str(info.value)
        with torch.no_grad():
            model[1].weight.fill_(1.0)
    Path(folder, f"{rank}.done").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_odd_one_of_three_is_named(tmp_path: Path) -> None:
    mp.start_processes(compare, (3, str(tmp_path)), nprocs=3, start_method="spawn")
    assert len(list(tmp_path.glob("*.done"))) == 3
