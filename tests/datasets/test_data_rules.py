"""Data descriptions in full: colours, templates, unknown values, lists, and their faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_eomt.datasets import FolderSegDataset, load_data
from mmseg_eomt.datasets.file_pairs import find_pairs

Describe = Callable[..., dict[str, Any]]
COLORS = {
    0: {"name": "sky", "labels": [[0, 0, 255], [10, 20, 30]]},
    5: {"name": "road", "labels": [[128, 64, 128]]},
    9: "grey nine",
}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def pair(folder: Path, images: str, masks: str) -> dict[str, str]:
    return {"images": str(folder / images), "masks": str(folder / masks)}


def test_colours_map_in_one_table_with_numbers_as_greys(describe: Describe) -> None:
    data = load_data(describe(classes=COLORS, ignore_index=[[1, 2, 3], 255]))
    table = data.label_table()
    mask = np.array(
        [[[0, 0, 255], [10, 20, 30], [128, 64, 128], [9, 9, 9], [1, 2, 3], [255, 255, 255]]],
        np.uint8,
    )
    assert table(mask, "m.png").tolist() == [[0, 0, 1, 2, 255, 255]]
    assert data.palette == [[0, 0, 255], [128, 64, 128], data.palette[2]]
    with pytest.raises(ValueError) as error:
        table(np.full((2, 2, 3), (1, 2, 4), np.uint8), "m.png")
    message = str(error.value)
    assert message.startswith("m.png: unknown colour [1, 2, 4] (4 pixels); data allows [0, 0, 255]")
    assert "unknown_values: ignore" in message


def test_colours_survive_a_config(describe: Describe) -> None:
    data = load_data(
        describe(
            classes=COLORS,
            ignore_index=[[1, 2, 3]],
            unknown_values="ignore",
            on_error="skip",
            max_skipped=0.2,
        )
    )
    assert load_data(json.loads(json.dumps(data.as_dict()))) == data


def test_default_ignore_index_leaves_white_to_a_class_of_that_colour(describe: Describe) -> None:
    data = load_data(describe(classes={0: {"name": "a", "labels": [[255, 255, 255]]}}))
    assert data.ignore_index == ()
    assert data.label_table()(np.full((1, 1, 3), 255, np.uint8), "m.png").tolist() == [[0]]


def test_unknown_values_may_be_ignored(describe: Describe) -> None:
    table = load_data(describe(unknown_values="ignore")).label_table()
    assert table(np.array([[0, 3, 200]], np.uint8), "m.png").tolist() == [[0, 255, 255]]
    assert table(np.array([[1, 60000]], np.uint16), "m.png").tolist() == [[1, 255]]


def test_colour_masks_need_colours(describe: Describe) -> None:
    table = load_data(describe()).label_table()
    with pytest.raises(ValueError, match=r"m\.png: the mask has 3 channels .* no class in data"):
        table(np.zeros((2, 2, 3), np.uint8), "m.png")


def test_folder_of_colour_masks(folder: Path, describe: Describe) -> None:
    for path in (folder / "train/masks").rglob("*.png"):
        values = np.asarray(Image.open(path))
        palette = np.array([[0, 0, 255], [128, 64, 128]], np.uint8)
        Image.fromarray(palette[(values > 0).astype(int)]).save(path)
    dataset = FolderSegDataset(
        describe(classes=COLORS),
        pipeline=[{"type": "LoadFolderImage"}, {"type": "LoadFolderAnnotations"}],
    )
    assert set(np.unique(dataset[0]["gt_seg_map"])) == {0, 1}
    assert dataset.metainfo["class_ids"] == [0, 5, 9]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(data: dict[str, Any], root: Path) -> list[tuple[str, str]]:
    pairs = find_pairs(load_data({"train": data, "classes": {0: "a"}}).folders("train")[0])
    return [
        (Path(p.image).relative_to(root).as_posix(), Path(p.mask).relative_to(root).as_posix())
        for p in pairs
    ]


def test_template_of_mask_names_holds_in_subfolders(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "i/deep/b.JPG", "m/a_label.png", "m/deep/b_label.PNG", "m/a_c.png")
    assert found(pair(tmp_path, "i", "m/{stem}_label.png"), tmp_path) == [
        ("i/a.jpg", "m/a_label.png"),
        ("i/deep/b.JPG", "m/deep/b_label.PNG"),
    ]


def test_templates_on_both_sides_fit_cityscapes(tmp_path: Path) -> None:
    image, mask = "l/aachen/aachen_1_leftImg8bit.png", "g/aachen/aachen_1_gtFine_labelIds.png"
    touch(tmp_path, image, mask, "g/aachen/aachen_1_gtFine_color.png")
    data = pair(tmp_path, "l/{stem}_leftImg8bit.png", "g/{stem}_gtFine_labelIds.png")
    assert found(data, tmp_path) == [(image, mask)]


def test_masks_may_lie_among_the_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.jpg", "b_mask.tif")
    assert found(pair(tmp_path, "", "{stem}_mask"), tmp_path) == [
        ("a.png", "a_mask.png"),
        ("b.jpg", "b_mask.tif"),
    ]


def test_folder_named_like_a_template_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "{x}/a.png", "{stem}/a.png")
    assert found(pair(tmp_path, "{x}", "{stem}"), tmp_path) == [("{x}/a.png", "{stem}/a.png")]


def test_missing_mask_of_a_template_is_named_by_it(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "m/a.png")
    with pytest.raises(FileNotFoundError, match=r"no mask \{stem\}_l\.png in .*named \{stem\}_l"):
        found(pair(tmp_path, "i", "m/{stem}_l.png"), tmp_path)


def test_two_masks_of_one_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "m/a.png", "m/a.tif")
    with pytest.raises(ValueError, match=r"2 masks have the stem 'a' \(a\.png, a\.tif\)"):
        found(pair(tmp_path, "i", "m"), tmp_path)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"train": {"images": "i", "masks": "m/{name}.png"}}, r"train\.masks: .*no template"),
    "stem twice": ({"train": {"images": "i", "masks": "m/{stem}{stem}.png"}}, r"\{stem\} once"),
    "stem in folder": ({"train": {"images": "i", "masks": "{stem}/m.png"}}, r"is no template"),
    "second pair": (
        {"train": [{"images": ".", "masks": "."}, {"images": "a"}]},
        r"train\[1\]: found",
    ),
    "pair twice": ({"train": [{"images": ".", "masks": "."}] * 2}, r"train: the same pair"),
    "unknown_values": ({"unknown_values": "skip"}, r"found 'skip'; allowed are 'error' and 'ign"),
    "on_error": ({"on_error": "ignore"}, r"on_error: found 'ignore'; allowed are 'raise' and 's"),
    "share": ({"max_skipped": 5}, r"max_skipped: found 5; give a share above 0 and below 1"),
    "true": ({"max_skipped": True}, r"max_skipped: found True"),
    "flat colour": (
        {"classes": {0: {"name": "a", "labels": [128, 64, 128]}}},
        r"classes\.0\.labels: 128 is given more than once.*write \[\[128, 64, 128\]\]",
    ),
    "flat ignored colour": ({"ignore_index": [0, 0, 0]}, r"ignore_index: 0 .*write \[\[0, 0, 0\]"),
    "colour range": (
        {"classes": {0: {"name": "a", "labels": [[0, 0, 300]]}}},
        r"labels: \[0, 0, 300\] is no colour",
    ),
    "short colour": ({"classes": {0: {"name": "a", "labels": [[1, 2]]}}}, r"\[1, 2\] is no colour"),
    "colour twice": (
        {"classes": {i: {"name": f"c{i}", "labels": [[1, 2, 3]]} for i in (0, 4)}},
        r"colour \(1, 2, 3\) belongs to the classes 0 and 4",
    ),
    "grey is a number": (
        {"classes": {0: "a", 1: {"name": "b", "labels": [[0, 0, 0]]}}},
        r"mask value 0 belongs to class 0 and the equal grey \[0, 0, 0\] to class 1",
    ),
    "ignored colour": (
        {"classes": {0: {"name": "a", "labels": [[1, 2, 3]]}}, "ignore_index": [[1, 2, 3]]},
        r"ignore_index: \[\[1, 2, 3\]\] is also .* class 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_clear_error(
    fault: str, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        load_data(describe(**changes))


def test_data_file_with_a_byte_order_mark_is_read(folder: Path, describe: Describe) -> None:
    path = folder / "d.json"
    path.write_text(json.dumps(describe()), encoding="utf-8-sig")
    assert load_data(path).num_classes == 3


def test_a_file_may_hold_all_forms_at_once(folder: Path) -> None:
    (folder / "data.yaml").write_text(
        """
        train: {images: train/images, masks: train/masks}
        val:   [{images: val/images, masks: "val/masks/{stem}.png"}]
        test:  {images: val/images, masks: val/masks}
        classes:
          0: background
          1: {name: vehicle, labels: [1, 7, 9]}
          2: {name: road, labels: [[128, 64, 128]]}
        ignore_classes: [0]
        ignore_index: 255
        """
    )
    data = load_data(folder / "data.yaml")
    assert data.class_ids == [1, 2]
    table = data.label_table()
    assert table(np.array([[0, 1, 7, 9, 255]], np.uint8), "m").tolist() == [[255, 0, 0, 0, 255]]
    colors = np.array([[[0, 0, 0], [7, 7, 7], [128, 64, 128], [255, 255, 255]]], np.uint8)
    assert table(colors, "m").tolist() == [[255, 0, 1, 255]]
    assert len(FolderSegDataset(folder / "data.yaml", split="test")) == 1
    assert len(FolderSegDataset(folder / "data.yaml", split="val")) == 1
