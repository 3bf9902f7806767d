"""A real dataset, as it is and with seeded faults: all of them are found and none is invented."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.datasets.check import DatasetReport, check_dataset

CAMVID = Path(__file__).parents[4] / "shared" / "data" / "camvid"
CLASSES = ("sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car") + (
    "pedestrian",
    "bicyclist",
    "unlabelled",
)

pytestmark = pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not beside the repository")


def describe(root: Path) -> dict[str, Any]:
    """CamVid's description."""
    splits = {
        split: {"images": str(root / split / "images"), "masks": str(root / split / "masks")}
        for split in ("train", "val")
    }
    return {**splits, "classes": dict(enumerate(CLASSES)), "ignore_classes": [11]}


def found(report: DatasetReport) -> dict[tuple[str, str], set[str]]:
    """Names of files by code and split."""
    return {
        (finding.code, finding.split): {Path(note.path).name for note in finding.files}
        for finding in report.findings
    }


@pytest.mark.slow
def test_camvid_is_sound() -> None:
    report = check_dataset(describe(CAMVID))
    assert report.findings == []
    assert report.splits["train"].read == 367
    assert report.splits["val"].read == 101


def test_seeded_faults_are_found_and_none_is_invented(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 12)):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        files = sorted((CAMVID / split / "images").iterdir())
        for path in files[:: len(files) // count][:count]:
            shutil.copy(path, tmp_path / split / "images")
            mask = CAMVID / split / "masks" / f"{path.stem}.png"
            shutil.copy(mask, tmp_path / split / "masks")
    assert check_dataset(describe(tmp_path)).findings == []
    images = sorted((tmp_path / "train/images").iterdir())
    masks = sorted((tmp_path / "train/masks").iterdir())

    masks[1].unlink()
    images[3].unlink()
    images[5].write_bytes(images[5].read_bytes()[:9000])
    masks[7].write_bytes(masks[7].read_bytes()[:700])
    Image.open(masks[9]).resize((240, 180), Image.Resampling.NEAREST).save(masks[9])
    edited = np.array(Image.open(masks[11]))
    edited[10:12, 20:25] = 63
    Image.fromarray(edited).save(masks[11])
    Image.fromarray(np.full_like(edited, 11)).save(masks[13])
    Image.open(masks[15]).convert("RGB").save(masks[15])
    images[17].write_bytes(b"")
    shutil.copy(images[19], images[19].with_name("again.jpg"))
    shutil.copy(masks[19], masks[19].with_name("again.png"))
    shutil.copy(images[21], tmp_path / "val/images/leaked.jpg")
    shutil.copy(masks[21], tmp_path / "val/masks/leaked.png")
    shutil.copy(masks[23], masks[25])
    Image.open(masks[27]).save(masks[27], format="JPEG")

    assert found(check_dataset(describe(tmp_path))) == {
        ("image_without_mask", "train"): {images[1].name},
        ("mask_without_image", "train"): {masks[3].name},
        ("truncated_image", "train"): {images[5].name},
        ("truncated_mask", "train"): {masks[7].name},
        ("size_mismatch", "train"): {masks[9].name},
        ("unknown_value", "train"): {masks[11].name},
        ("no_labelled_pixel", "train"): {masks[13].name},
        ("mask_mode", "train"): {masks[15].name},
        ("empty_image_file", "train"): {images[17].name},
        ("duplicate_image", "train"): {"again.jpg"},
        ("leakage", "train, val"): {"leaked.jpg"},
        ("duplicate_mask", "train"): {masks[25].name},
        ("jpeg_mask", "train"): {masks[27].name},
    }


@pytest.mark.parametrize(
    ("shift", "code"), [(1, "guess_off_by_one"), (100, None)], ids=["ids from 1", "ids from 100"]
)
def test_shifted_ids(tmp_path: Path, shift: int, code: str | None) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    for path in sorted((CAMVID / "train/images").iterdir())[:200:25]:
        shutil.copy(path, tmp_path / "train/images")
        mask = np.asarray(Image.open(CAMVID / "train/masks" / f"{path.stem}.png"))
        Image.fromarray(mask + np.uint8(shift)).save(tmp_path / f"train/masks/{path.stem}.png")
    data = describe(tmp_path)
    del data["val"]
    codes = {finding.code for finding in check_dataset(data).findings}
    assert "unknown_value" in codes
    assert {c for c in codes if c.startswith("guess_")} == ({code} if code else set())
