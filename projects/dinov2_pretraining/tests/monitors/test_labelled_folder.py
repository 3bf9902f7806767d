"""Classes are subfolders; the test part is every fifth image of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.pictures import write_pictures

from dinov2_pretraining.monitors.labelled_folder import read_classes, split_classes


def test_classes_are_subfolders_in_order_of_their_names(tmp_path: Path) -> None:
    write_pictures(tmp_path / "b", 2)
    nested = write_pictures(tmp_path / "a" / "more", 1)
    (tmp_path / ".cache").mkdir()
    found = read_classes(tmp_path)
    assert found.classes == ["a", "b"] and found.labels == [0, 1, 1]
    assert found.paths[0] == str(nested[0])


def test_every_fifth_image_of_a_class_is_held_out(tmp_path: Path) -> None:
    for name, count in (("a", 11), ("b", 3)):
        write_pictures(tmp_path / name, count)
    learn, test = split_classes(read_classes(tmp_path))
    assert [Path(path).stem for path in test.paths] == ["004", "009", "002"]
    assert test.labels == [0, 0, 1] and learn.labels == [0] * 9 + [1] * 2
    assert not set(learn.paths) & set(test.paths)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_classes(tmp_path / "x")
    write_pictures(tmp_path / "a", 2)
    with pytest.raises(ValueError, match="1 subfolders"):
        read_classes(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="b: no images"):
        read_classes(tmp_path)
    write_pictures(tmp_path / "b", 1)
    with pytest.raises(ValueError, match=r"000\.png is the only image of the class 'b'"):
        split_classes(read_classes(tmp_path))
