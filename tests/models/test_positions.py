from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.models.positions import keys_matrix

LENGTHS = [(37, 32), (37, 37), (37, 64), (37, 10), (14, 1), (2, 3), (16, 16), (64, 7), (7, 91)]


@pytest.mark.parametrize(("old", "new"), LENGTHS)
def test_positions_computed_in_a_graph_are_those_of_an_antialiased_interpolation(
    old: int, new: int
) -> None:
    table = torch.randn(1, 5, 2, old)
    # (Two rows: torch 2.15's kernel is wrong for images of width 1, not for those of height 2.)
    expected = F.interpolate(table, size=(2, new), mode="bicubic", antialias=True)
    moved = table @ keys_matrix(old, new, device=torch.device("cpu")).t()
    torch.testing.assert_close(moved, expected, rtol=0, atol=4e-6)


def test_each_position_of_a_graph_is_an_average() -> None:
    matrix = keys_matrix(37, 23, device=torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(1), torch.ones(23))
