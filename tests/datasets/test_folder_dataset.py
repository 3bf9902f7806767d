"""Folder datasets: what they hold, and every fault found at construction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_eomt.datasets import FolderSegDataset
from tests.datasets.conftest import write_pair

Describe = Callable[..., dict[str, Any]]
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
PACK = {"type": "PackSegInputs"}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def test_samples_hold_mapped_labels_and_user_ids(folder: Path, describe: Describe) -> None:
    dataset = DATASETS.build(
        {"type": "FolderSegDataset", "data": describe(), "pipeline": [*LOAD, PACK]}
    )
    assert len(dataset) == 3
    assert dataset.metainfo["classes"] == ["sky", "ground", "car"]
    assert dataset.metainfo["class_ids"] == [0, 1, 7]
    names = [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(3)]
    assert names == ["a", "b", "c"]
    sample = dataset[0]
    mask = np.asarray(Image.open(folder / "train/masks/a.png")).astype(int)
    expected = np.select([mask == 0, mask == 1, mask == 255], [0, 1, 255], 2)
    assert np.array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), expected)
    assert sample["inputs"].shape == (3, 8, 12)


@pytest.mark.parametrize("readers", ["stock names", "own names"])
def test_stock_names_mean_the_own_readers_and_packing(describe: Describe, readers: str) -> None:
    own = [{"type": "LoadFolderImage"}, {"type": "LoadFolderAnnotations"}]
    pipeline = LOAD if readers == "stock names" else own
    dataset = FolderSegDataset(describe(), pipeline=[*pipeline, PACK])
    steps = [type(step).__name__ for step in dataset.pipeline.transforms]
    assert steps == ["LoadFolderImage", "LoadFolderAnnotations", "PackByteInputs"]


def test_test_time_augmentation_reads_by_the_own_rules(describe: Describe) -> None:
    views = {"type": "TestTimeAug", "transforms": [[{"type": "LoadAnnotations"}], [PACK]]}
    sample = FolderSegDataset(describe(), pipeline=[LOAD[0], views])[0]
    assert set(sample["data_samples"][0].gt_sem_seg.data.unique().tolist()) <= {0, 1, 2, 255}


def test_reader_options_that_would_be_lost_are_refused(describe: Describe) -> None:
    with pytest.raises(ValueError, match=r"LoadImageFromFile has the options \['to_float32'\]"):
        FolderSegDataset(describe(), pipeline=[{"type": "LoadImageFromFile", "to_float32": True}])


def test_list_of_folders_is_one_dataset(describe: Describe) -> None:
    data = describe()
    data["train"] = [data["train"], data["val"]]
    assert len(FolderSegDataset(data)) == 4


def test_lazy_dataset_knows_its_classes_without_folders(describe: Describe) -> None:
    data = describe(train={"images": "nowhere", "masks": "nowhere"})
    dataset = FolderSegDataset(data, lazy_init=True)
    assert dataset.metainfo["classes"] == ["sky", "ground", "car"]


def test_hidden_and_foreign_files_are_passed_over(folder: Path, describe: Describe) -> None:
    (folder / "train/images/.DS_Store").write_text("")
    (folder / "train/images/._a.jpg").write_text("")
    (folder / "train/images/notes.txt").write_text("")
    assert len(FolderSegDataset(describe())) == 3


def test_upper_case_suffixes_pair(folder: Path, describe: Describe) -> None:
    (folder / "train/images/a.jpg").rename(folder / "train/images/a.JPG")
    (folder / "train/masks/a.png").rename(folder / "train/masks/a.PNG")
    assert len(FolderSegDataset(describe())) == 3


def test_image_without_mask(folder: Path, describe: Describe) -> None:
    for stem in ("a", "deep/c"):
        (folder / f"train/masks/{stem}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 of 3 images .* no mask .*: a\.jpg, deep/c\.jpg"
    ):
        FolderSegDataset(describe())


def test_long_lists_show_five_names_and_the_count(folder: Path, describe: Describe) -> None:
    for number in range(8):
        write_pair(folder, "train", f"n{number}")
        (folder / f"train/masks/n{number}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"n0\.jpg, .*n4\.jpg, \.\.\. \(8 in all\)"):
        FolderSegDataset(describe())


def test_mask_of_another_format_is_pointed_out(folder: Path, describe: Describe) -> None:
    (folder / "train/masks/a.png").rename(folder / "train/masks/a.bmp")
    with pytest.raises(FileNotFoundError, match=r"1 files with \.bmp, but masks must be PNG"):
        FolderSegDataset(describe())


def test_mask_without_image(folder: Path, describe: Describe) -> None:
    (folder / "train/images/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 masks .* no image .*: b\.png"):
        FolderSegDataset(describe())


def test_empty_set(folder: Path, describe: Describe) -> None:
    (folder / "val/images/v.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val/images: no images; it is empty"):
        FolderSegDataset(describe(), split="val")
    (folder / "val/images/v.gif").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no images; it holds 1 files with \.gif"):
        FolderSegDataset(describe(), split="val")


def test_missing_folder(describe: Describe) -> None:
    with pytest.raises(FileNotFoundError, match=r"val\.images: .*nowhere does not exist"):
        FolderSegDataset(describe(val={"images": "nowhere", "masks": "nowhere"}), split="val")


def test_missing_split(describe: Describe) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'"):
        FolderSegDataset(describe(), split="test")


def test_two_images_of_one_stem(folder: Path, describe: Describe) -> None:
    Image.new("RGB", (12, 8)).save(folder / "train/images/a.png")
    with pytest.raises(ValueError, match=r"2 images have the stem 'a' \(a\.jpg, a\.png\)"):
        FolderSegDataset(describe())


def test_size_mismatch(folder: Path, describe: Describe) -> None:
    Image.new("L", (8, 12)).save(folder / "train/masks/b.png")
    message = r"1 of 3 pairs .*\n.*b\.png: the mask is 8x12 .* is 12x8 \(width and height exchanged"
    with pytest.raises(ValueError, match=message):
        FolderSegDataset(describe())


def test_image_shown_turned_fits_a_turned_mask(folder: Path, describe: Describe) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(folder / "train/images/b.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"b\.png: the mask is 12x8"):
        FolderSegDataset(describe())
    Image.new("L", (8, 12)).save(folder / "train/masks/b.png")
    assert FolderSegDataset(describe(), pipeline=LOAD)[1]["img"].shape == (12, 8, 3)


@pytest.mark.parametrize("path", ["train/images/a.jpg", "train/masks/a.png"])
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_unreadable_file(folder: Path, describe: Describe, path: str, content: bytes) -> None:
    (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: unreadable"):
        FolderSegDataset(describe())


def test_file_damaged_behind_its_header_is_named_when_read(
    folder: Path, describe: Describe
) -> None:
    dataset = FolderSegDataset(describe(), pipeline=LOAD)
    path = folder / "train/images/a.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"a\.jpg: unreadable image"):
        dataset[0]


def test_unknown_mask_value_before_training(folder: Path, describe: Describe) -> None:
    Image.new("L", (12, 8), 3).save(folder / "train/masks/b.png")
    with pytest.raises(
        ValueError, match=r"1 of the 3 masks .*\n.*b\.png: unknown mask value 3 \(96"
    ):
        FolderSegDataset(describe())


def test_unknown_mask_value_when_read(folder: Path, describe: Describe) -> None:
    Image.new("L", (12, 8), 3).save(folder / "train/masks/b.png")
    dataset = FolderSegDataset(describe(), pipeline=LOAD, num_checked_masks=0)
    assert dataset[0]["gt_seg_map"].shape == (8, 12)
    with pytest.raises(ValueError, match=r"b\.png: unknown mask value 3"):
        dataset[1]
    dataset.check_labels(max_files=1)  # the first of three
    with pytest.raises(ValueError, match=r"b\.png: unknown mask value 3"):
        dataset.check_labels()


def test_annotations_need_a_folder_dataset() -> None:
    from mmseg_eomt.datasets.transforms import LoadFolderAnnotations

    with pytest.raises(
        ValueError, match=r"m\.png: LoadFolderAnnotations reads .* FolderSegDataset"
    ):
        LoadFolderAnnotations()({"seg_map_path": "m.png"})
