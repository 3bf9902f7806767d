from __future__ import annotations

from typing import Any

import pytest

from mmseg_eomt.engine.hooks import MaskAnnealingHook, default_windows, mask_probability


def steps_of(num_blocks: int, total: int) -> tuple[list[float], list[float]]:
    windows = MaskAnnealingHook().resolve(num_blocks, total)
    return [start for start, _ in windows], [end for _, end in windows]


def test_default_rule_gives_the_published_tables() -> None:
    # eomt.md section 2; the published tables belong to nominal lengths of 6 x 6520 and 6 x 3317.
    assert steps_of(4, 6 * 6520) == ([6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600])
    assert steps_of(4, 6 * 3317) == ([3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585])
    # section 1.2: starts in twelfths of the run.
    assert steps_of(3, 1200) == ([200, 500, 800], [400, 700, 1000])
    assert steps_of(5, 1200) == ([200, 350, 500, 650, 800], [400, 550, 700, 850, 1000])
    assert default_windows(1) == [(1 / 6, 2 / 6)]


def test_probability_is_the_published_curve() -> None:
    assert mask_probability(99, 100, 200) == 1.0
    assert mask_probability(100, 100, 200) == 1.0
    assert mask_probability(150, 100, 200) == pytest.approx(0.5**0.9)
    assert mask_probability(175, 100, 200, power=2.0) == pytest.approx(0.0625)
    assert mask_probability(200, 100, 200) == 0.0
    assert mask_probability(10**6, 100, 200) == 0.0
    assert mask_probability(100, 100, 100) == 0.0  # a window of no length


def test_absolute_steps_and_shares_agree() -> None:
    absolute = MaskAnnealingHook(starts=[0, 500], ends=[100, 1000])
    shares = MaskAnnealingHook(starts=[0.0, 0.5], ends=[0.1, 1.0])
    assert absolute.resolve(2, 1000) == shares.resolve(2, 1000)
    assert absolute.resolve(2, 4000) != shares.resolve(2, 4000)


@pytest.mark.parametrize(
    ("kwargs", "num_blocks", "words"),
    [
        ({"starts": [0.1]}, 1, "both or neither"),
        ({"starts": [0.1], "ends": [0.2, 0.3]}, 2, "1 starts and 2 ends"),
        ({"starts": [0.1], "ends": [0.2]}, 4, "4 joint blocks"),
        ({"starts": [0.3], "ends": [0.2]}, 1, "before it starts"),
        ({"starts": [500.0], "ends": [600.0]}, 1, "share of the run"),
        ({"power": 0}, 1, "power"),
    ],
)
def test_bad_windows_are_refused(kwargs: dict[str, Any], num_blocks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskAnnealingHook(**kwargs).resolve(num_blocks, 1000)
