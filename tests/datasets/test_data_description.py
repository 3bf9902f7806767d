"""The description of a folder dataset: what it means, and every fault by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mmengine.config import Config, ConfigDict

from mmseg_eomt.datasets import load_data
from mmseg_eomt.images.painting import default_palette

Describe = Callable[..., dict[str, Any]]


def test_internal_ids_follow_ascending_ids_of_kept_classes(describe: Describe) -> None:
    data = load_data(
        describe(classes={9: "car", 2: "road", 5: {"name": "sky", "labels": [50, 51]}, 3: "x"},
                 ignore_classes=[3], ignore_index=[0, 255])
    )  # fmt: skip
    assert data.classes == ["road", "sky", "car"]
    assert data.class_ids == [2, 5, 9]
    assert data.num_classes == 3
    mask = np.array([[2, 50, 51, 9, 3, 0, 255]], np.uint8)
    assert data.label_table()(mask, "m.png").tolist() == [[0, 1, 1, 2, 255, 255, 255]]


def test_sixteen_bit_mask_values_map_like_eight_bit_ones(describe: Describe) -> None:
    table = load_data(describe(classes={0: "a", 1: {"name": "b", "labels": [40000]}})).label_table()
    mask = np.array([[0, 40000, 255]], np.uint16)
    assert table(mask, "m.png").tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match=r"m\.png: unknown mask value 39999 \(1 pixels\)"):
        table(np.array([[39999]], np.uint16), "m.png")


def test_unknown_value_error_names_file_values_allowed_and_mend(describe: Describe) -> None:
    table = load_data(describe()).label_table()
    with pytest.raises(ValueError) as error:
        table(np.array([[0, 3, 3, 200]], np.uint8), "some/m.png")
    message = str(error.value)
    assert message.startswith("some/m.png: unknown mask value 3 (2 pixels), 200 (1 pixels)")
    assert "allows 0-1, 7, 9, 255" in message and "ignore_index" in message


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_paths_are_relative_to_the_file(
    suffix: str, folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = describe(
        train={"images": "train/images", "masks": "train/masks"},
        val={"images": "val/images", "masks": "val/masks"},
    )
    path = folder / f"data{suffix}"
    # JSON turns the class ids into strings.
    path.write_text(yaml.dump(content) if suffix == ".yaml" else json.dumps(content))
    monkeypatch.chdir(folder.parent)
    data = load_data(path)
    assert data.folders("train")[0].images == folder / "train/images"
    assert data.class_ids == [0, 1, 7]


def test_description_survives_a_config_file(tmp_path: Path, describe: Describe) -> None:
    data = load_data(describe(ignore_classes=[1], palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    Config({"data": data.as_dict()}).dump(tmp_path / "c.py")
    again = load_data(Config.fromfile(tmp_path / "c.py").data)
    assert again == data
    assert again.palette == [[1, 2, 3], [7, 8, 9]]


def test_split_may_be_a_list_of_pairs(describe: Describe) -> None:
    data = describe()
    data["train"] = [data["train"], data["val"]]
    assert len(load_data(ConfigDict(data)).folders("train")) == 2


def test_default_colours_are_distinct_and_do_not_move_when_classes_are_added() -> None:
    colors = default_palette(1000)
    assert len(set(colors)) == 1000
    assert default_palette(10) == colors[:10]


def test_ignoring_a_class_keeps_the_colours_of_the_others(describe: Describe) -> None:
    whole, part = load_data(describe()), load_data(describe(ignore_classes=[0]))
    assert part.palette == whole.palette[1:]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"clases": {}}, r"unknown key 'clases'; allowed are train, val"),
    "no classes": ({"classes": None}, r"classes: found None; give at least one class"),
    "empty classes": ({"classes": {}}, r"classes: found \{\}; give at least one class"),
    "class list": ({"classes": ["a"]}, r"classes: found \['a'\]"),
    "negative id": (
        {"classes": {-1: "a"}},
        r"classes: -1 is not a class id; allowed .* 0 to 65535",
    ),
    "text id": ({"classes": {"a": "a"}}, r"classes: 'a' is not a class id"),
    "true as id": ({"classes": {True: "a"}}, r"classes: True is not a class id"),
    "id twice": ({"classes": {"1": "a", 1: "b"}}, r"id 1 is given more than once"),
    "name twice": ({"classes": {0: "a", 4: "a"}}, r"name 'a' belongs to the classes 0 and 4"),
    "no name": ({"classes": {0: None}}, r"classes\.0: the name is None, not text"),
    "boolean name": ({"classes": {0: False}}, r"the name is False, not text; write it in quotes"),
    "label twice": (
        {"classes": {0: "a", 1: {"name": "b", "labels": [0]}}},
        r"mask value 0 belongs to the classes 0 and 1",
    ),
    "negative label": (
        {"classes": {0: {"name": "a", "labels": [-3]}}},
        r"classes\.0\.labels: -3 is not a mask value",
    ),
    "no labels": (
        {"classes": {0: {"name": "a", "labels": []}}},
        r"labels: found \[\]; give a list",
    ),
    "class key": ({"classes": {0: {"name": "a", "colour": 1}}}, r"unknown key \['colour'\]"),
    "unknown ignored": ({"ignore_classes": [5]}, r"\[5\] are no class ids; classes has 0, 1, 7"),
    "ignored number": ({"ignore_classes": 0}, r"ignore_classes: found 0; give a list"),
    "all ignored": ({"ignore_classes": [0, 1, 7]}, r"0 of 3 classes are left"),
    "too many": ({"classes": {i: f"c{i}" for i in range(1000, 1255)}}, r"255 of 255 .* 1 to 254"),
    "ignored is class": ({"ignore_index": 9}, r"ignore_index: \[9\] is also .* class 7 \(car\)"),
    "ignore text": ({"ignore_index": "none"}, r"ignore_index: 'none' is not an entry"),
    "few colours": ({"palette": [[0, 0, 0]]}, r"palette: found 1 entries; give one \[R, G, B\]"),
    "bad colour": ({"palette": [[0, 0, 256]] * 3}, r"palette: \[0, 0, 256\] is no colour"),
    "same colour": ({"palette": [[0, 0, 1]] * 3}, r"palette: \[0, 0, 1\] is given to two classes"),
    "no split": ({"train": None, "val": None}, r"none of the splits train, val, test is given"),
    "split text": ({"train": "images"}, r"train: found 'images'; write \{images: FOLDER"),
    "split key": ({"train": {"images": "a"}}, r"train: found \{'images': 'a'\}; write"),
    "split number": ({"train": {"images": 3, "masks": "a"}}, r"train\.images: 3 is not the path"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_clear_error(fault: str, describe: Describe) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        load_data(describe(**changes))


def test_missing_folder_is_named(describe: Describe, tmp_path: Path) -> None:
    missing = {"images": str(tmp_path / "nowhere"), "masks": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=r"val\.images: .*nowhere does not exist"):
        load_data(describe(val=missing))
    load_data(describe(val=missing), check_splits=["train"])


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such data file"):
        load_data(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.yaml", "train: {a", "not readable as YAML or JSON"),
        ("d.yaml", "classes: {0: a, 0: b}", "key 0 is given more than once"),
        ("d.json", '{"classes": {"0": "a", "0": "b"}}', r"key \['0'\] is given more than once"),
        ("d.yaml", "- a", "holds list, not a mapping"),
        ("d.yaml", "", "holds NoneType, not a mapping"),
    ],
)
def test_broken_data_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_data(path)
    assert str(error.value).startswith(str(path))


def test_asking_for_a_split_that_was_not_given(describe: Describe) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, val"):
        load_data(describe()).folders("test")
