"""The check at the start of training: what it finds, what it lets pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from mmseg_eomt.apis.resolve import check_data, explaining_data
from mmseg_eomt.datasets import FolderSegDataset, load_data
from mmseg_eomt.datasets.check.quick_check import quick_check


def write(root: Path, split: str, masks: list[Any], *, seed: int = 0) -> None:
    """Writes pairs with these masks."""
    rng = np.random.default_rng([seed, len(split)])
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True)
    for number, mask in enumerate(masks):
        array = np.asarray(mask, np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        image = rng.integers(0, 256, (*array.shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / split / "images" / f"{number:03}.jpg")
        Image.fromarray(array).save(root / split / "masks" / f"{number:03}.png")


def data(root: Path, **changes: Any) -> dict[str, Any]:
    """A description of two classes."""
    splits = {
        split: {"images": str(root / split / "images"), "masks": str(root / split / "masks")}
        for split in ("train", "val")
    }
    return {**splits, "classes": {0: "background", 1: "crack"}, **changes}


def config(content: dict[str, Any]) -> Config:
    """The part of a config that says what is read."""
    loaders = {
        f"{split}_dataloader": dict(
            dataset=dict(type="FolderSegDataset", data=content, split=split)
        )
        for split in ("train", "val")
    }
    return Config(loaders)


def test_masks_of_0_and_255_are_refused_though_every_value_is_known(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, split, [[[0, 255], [0, 0]]] * 30)
    FolderSegDataset(data(tmp_path), split="train")  # nothing of this is forbidden by itself
    with pytest.raises(ValueError, match=r"scaled masks, class ids multiplied by 255"):
        check_data(config(data(tmp_path)), ("train", "val"))


def test_a_class_in_one_mask_of_many_clears_the_suspicion(tmp_path: Path) -> None:
    masks = [[[0, 255], [0, 0]]] * 79 + [[[0, 1], [0, 255]]]
    write(tmp_path, "train", masks)
    write(tmp_path, "val", [[[0, 1]]])
    assert quick_check(load_data(data(tmp_path)), ["train", "val"]) == []


def test_unknown_value_is_explained(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, split, [[[1, 2], [2, 1]]] * 3)
    cfg = config(data(tmp_path))
    with (
        pytest.raises(ValueError, match=r"(?s)unknown mask value 2.*off by one") as error,
        explaining_data(cfg, ("train", "val")),
    ):
        FolderSegDataset(data(tmp_path), split="train")
    assert "000.png" in str(error.value) and "check_dataset.py" in str(error.value)


def test_errors_that_have_nothing_to_do_with_masks_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no$"), explaining_data(Config(), ()):
        raise ValueError("no")


def test_shared_images_are_warned_of_and_do_not_end_the_run(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, split, [[[0, 1]]] * 3)
    shutil.copy(tmp_path / "train/images/001.jpg", tmp_path / "val/images/000.jpg")
    MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / "run.log"))
    check_data(config(data(tmp_path)), ("train", "val"))
    said = " ".join((tmp_path / "run.log").read_text().split())
    assert "1 image of val (of 3) is in train as well" in said
    findings = quick_check(load_data(data(tmp_path)), ["train", "val"])
    assert [finding.code for finding in findings] == ["leakage"]
    assert findings[0].files[0].path.endswith("val/images/000.jpg")


def test_masks_without_labels_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "train", [[[5, 255]]] * 3)
    write(tmp_path, "val", [[[0, 1]]])
    classes = {0: "a", 1: "b", 5: "void"}
    described = load_data(data(tmp_path, classes=classes, ignore_classes=[5]))
    findings = quick_check(described, ["train", "val"])
    assert [finding.code for finding in findings] == ["no_labelled_pixel"]
