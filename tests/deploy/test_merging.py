"""Windows are merged in strips of rows without a seam."""

from __future__ import annotations

import numpy as np
import pytest

from mmseg_eomt.deploy import merging


def test_two_strips_at_the_size_of_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((3, 12, 7), np.float32)
    windows = merging.WindowScores([scores], [(0, 0)], (12, 7))
    monkeypatch.setattr(merging, "MEMORY", 4 * 3 * 7 * 8)  # six rows, and two that a resize reads
    np.testing.assert_array_equal(merging.label_map(windows, (12, 7)), scores.argmax(0))
