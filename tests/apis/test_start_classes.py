"""The class head of a new task: which rows come from where."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.apis.start_classes import ClassRow, match_classes
from mmseg_eomt.apis.start_from import as_text, start_from, start_tables
from mmseg_eomt.checkpoints.lean import save_weights
from mmseg_eomt.header import ModelHeader
from tests.apis.tiny import tiny_header

WEIGHT, BIAS = "decode_head.class_head.weight", "decode_head.class_head.bias"


def _header(*classes: str) -> ModelHeader:
    count = len(classes)
    return tiny_header(classes=classes, class_ids=tuple(range(count)), palette=((0, 0, 0),) * count)


def _start(tmp_path: Any, old: ModelHeader, new: ModelHeader, reuse: Any) -> Any:
    path = tmp_path / "w.safetensors"
    source, model = build_segmentor(old), build_segmentor(new)
    save_weights(path, source, old)
    before = {name: model.state_dict()[name].clone() for name in (WEIGHT, BIAS)}
    fitted = start_from(model, path, classes=list(new.classes), reuse_class_head=reuse)
    return fitted, source.state_dict(), before, model.state_dict()


def test_by_name_takes_rows_of_the_same_name(tmp_path: Any) -> None:
    old = _header("road", "sky", "tree", "Car")
    new = _header("tree", "person", " road ", "car", "[red]dog")
    fitted, theirs, before, after = _start(tmp_path, old, new, "by_name")
    for name in (WEIGHT, BIAS):
        assert len(after[name]) == 6
        for row, origin in {0: 2, 2: 0, 5: 4}.items():
            assert torch.equal(after[name][row], theirs[name][origin]), (name, row)
        for row in (1, 3, 4):
            assert torch.equal(after[name][row], before[name][row]), (name, row)
    text = as_text(start_tables(fitted))
    assert "2 of 5 classes keep their rows, 3 begin anew" in fitted.rules[-1].done
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["tree", "2", ""] in lines
    assert ["person", "begins anew", ""] in lines
    assert ["road", "0", ""] in lines
    assert ["car", "begins anew", "the file has 'Car': not the same name"] in lines
    assert ["[red]dog", "begins anew", ""] in lines
    assert ["(no object)", "4", ""] in lines


def test_by_name_with_no_common_class_keeps_no_object(tmp_path: Any) -> None:
    _, theirs, before, after = _start(tmp_path, _header("a", "b"), _header("c"), "by_name")
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], torch.stack((before[name][0], theirs[name][2])))


def test_anew_keeps_the_models_own_rows_even_for_the_same_classes(tmp_path: Any) -> None:
    header = _header("a", "b")
    _, theirs, before, after = _start(tmp_path, header, header, False)
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], before[name])
        assert not torch.equal(after[name], theirs[name])


def test_true_takes_the_head_over(tmp_path: Any) -> None:
    _, theirs, _, after = _start(tmp_path, _header("a", "b"), _header("a", "b "), True)
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], theirs[name])


@pytest.mark.parametrize(
    ("found", "wanted", "reuse", "message"),
    [
        (("a", "b"), ("a", "c"), True, "only in the file: 'b'; only in the dataset: 'c'"),
        (("a", "b"), ("a",), True, "only in the file: 'b'. reuse_class_head='by_name'"),
        (("a", "b"), ("b", "a"), True, r"another order \(file / dataset\): 'a' / 'b', 'b' / 'a'"),
        (("a", "A"), ("a", "a "), "by_name", "dataset has more than one class named 'a'"),
        (("a", "a"), ("a", "b"), "by_name", "file has more than one class named 'a'"),
        (("a",), ("a",), "names", "'names'; allowed: False"),
        (("a",), ("a",), 1, "reuse_class_head is 1"),
    ],
)
def test_what_cannot_be_is_refused(
    found: Any, wanted: Any, reuse: Any, message: str, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        _start(tmp_path, _header(*found), _header(*wanted), reuse)


def test_similar_names_are_hinted_only_where_they_are_free() -> None:
    rows = match_classes(["Road", "road", "SKY"], ["road", "ROAD", "Sky"], "f")
    assert rows[0] == ClassRow("road", 1)
    assert rows[1].source is None and "'Road'" in rows[1].hint and "'road'" not in rows[1].hint
    assert rows[2].source is None and "'SKY'" in rows[2].hint
    assert rows[3] == ClassRow(None, 3)
