"""Wording that all messages share."""

from __future__ import annotations

from mmseg_eomt.errors import listed, quoted, ranges, shorten


def test_long_lists_say_how_long_they_are() -> None:
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(["a", "b"], 2) == "a, b"
    assert listed([]) == "none"
    assert shorten([1, 2, 3], 2) == "1, 2, ... (3 in all)"
    assert shorten([1, 2], 2) == "1, 2"


def test_neighbouring_numbers_are_ranges() -> None:
    assert ranges([0, 1, 2, 3, 255]) == ["0-3", "255"]
    assert ranges([1, 3, 4], "..") == ["1", "3..4"]
    assert ranges([]) == []


def test_long_values_are_cut_off() -> None:
    assert quoted("a" * 200) == "'" + "a" * 96 + "..."
    assert quoted({"a": 1}) == "{'a': 1}"
