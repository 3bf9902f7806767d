"""Well-known datasets through the conversion tool: verified and described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.converting import Run, image, load_tool, png, reads, state, write


@pytest.fixture(name="run")
def _run() -> Run:
    return load_tool()


def known_voc(root: Path) -> tuple[int, int]:
    for stem in ("a", "b", "unlisted"):
        image(root / f"JPEGImages/{stem}.jpg")
    for stem in ("a", "b"):
        picture = Image.fromarray(np.full((20, 30), 20, np.uint8))
        picture.putpalette(list(range(63)))
        path = root / f"SegmentationClass/{stem}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    write(root / "ImageSets/Segmentation/train.txt", "a\n")
    write(root / "ImageSets/Segmentation/val.txt", "b\n")
    return 20, 20


def known_ade20k(root: Path) -> tuple[int, int]:
    for split in ("training", "validation"):
        image(root / f"images/{split}/a.jpg")
        mask = np.full((20, 30), 150, np.uint8)
        mask[0] = 0
        png(root / f"annotations/{split}/a.png", mask)
    return 150, 149


def known_cityscapes(root: Path) -> tuple[int, int]:
    for split in ("train", "val"):
        image(root / f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png")
        mask = np.full((20, 30), 33, np.uint8)
        mask[0] = 4
        png(root / f"gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png", mask)
        png(root / f"gtFine/{split}/ulm/ulm_0_gtFine_color.png", np.zeros((20, 30, 4), np.uint8))
    return 18, 18


def known_coco_stuff(root: Path) -> tuple[int, int]:
    for split in ("train2017", "val2017"):
        image(root / f"images/{split}/000000000009.jpg")
        mask = np.full((20, 30), 181, np.uint8)
        mask[0] = 255
        png(root / f"annotations/{split}/000000000009.png", mask)
    return 181, 170


def known_coco_stuff_prepared(root: Path) -> tuple[int, int]:
    known_coco_stuff(root)
    for split in ("train2017", "val2017"):
        mask = np.full((20, 30), 170, np.uint8)
        png(root / f"annotations/{split}/000000000009_labelTrainIds.png", mask)
    return 170, 170


@pytest.mark.parametrize(
    ("name", "make", "bad_value"),
    [
        ("voc", known_voc, 21),
        ("ade20k", known_ade20k, 151),
        ("cityscapes", known_cityscapes, 34),
        ("coco-stuff", known_coco_stuff, 11),
        ("coco-stuff", known_coco_stuff_prepared, 171),
    ],
)
def test_known_datasets_are_verified_and_described(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], tuple[int, int]],
    bad_value: int,
) -> None:
    root = tmp_path / "root"
    class_id, internal = make(root)
    before = state(root)
    assert run("describe", name, root, "--out", tmp_path / "out") == 0
    assert state(root) == before
    for split in ("train", "val"):
        dataset = reads(tmp_path / "out", split)
        assert len(dataset) == 1
        info = dataset.get_data_info(0)
        with Image.open(info["seg_map_path"]) as file:
            labels = info["label_table"](np.array(file), "mask")
        assert labels[-1, -1] == internal
        assert dataset.metainfo["class_ids"][internal] == class_id
    masks = [path for path in root.rglob("*.png") if path.stat().st_size and "val" in str(path)]
    wrong = next(
        path
        for path in sorted(masks or root.rglob("SegmentationClass/*.png"), reverse=True)
        if "leftImg8bit" not in str(path) and "color" not in path.name
    )
    png(wrong, np.full((20, 30), bad_value, np.uint8))
    assert run("describe", name, root, "--out", tmp_path / "o2") == 2
    said = capsys.readouterr().err
    assert f"unknown mask value {bad_value} (600 pixels)" in said and wrong.name in said
    wrong.unlink()
    assert run("describe", name, root, "--out", tmp_path / "o2") == 2
    assert wrong.name in capsys.readouterr().err
    assert not (tmp_path / "o2").exists()
