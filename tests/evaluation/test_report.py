"""Reports hold what was counted, over any number of processes, each image once."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from mmseg_eomt.evaluation import SegmentationMetric
from mmseg_eomt.evaluation.confusion import count_confusion
from mmseg_eomt.evaluation.report import draw_confusion
from tests.evaluation.test_segmentation_metric import CLASSES, evaluate, samples

FILES = ["classes.csv", "confusion.csv", "confusion.png", "images.csv"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_report_holds_the_counts(tmp_path: Path) -> None:
    data = samples(6)
    data[4]["pred_sem_seg"]["data"][:] = 2  # the worst
    data[5]["gt_sem_seg"]["data"][:] = 255
    scores = evaluate(SegmentationMetric(report_dir=str(tmp_path / "r"), boundary=0.1), data)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == FILES

    label = torch.stack([s["gt_sem_seg"]["data"] for s in data]).numpy()
    prediction = torch.stack([s["pred_sem_seg"]["data"] for s in data]).numpy()
    for true, row in zip(range(4), rows(tmp_path / "r/confusion.csv"), strict=True):
        expected = [int(((label == true) & (prediction == found)).sum()) for found in range(4)]
        assert [int(row[name]) for name in CLASSES] == expected

    table = rows(tmp_path / "r/classes.csv")
    assert [row["class"] for row in table] == CLASSES
    assert table[3]["IoU"] == ""  # never there
    for name in ("IoU", "Acc", "BoundaryIoU"):
        mean = np.mean([float(row[name]) for row in table[:3]])
        assert mean == pytest.approx(scores[f"m{name}"], rel=1e-12)
    assert {"Dice", "Fscore", "Precision", "Recall"} <= table[0].keys()

    images = rows(tmp_path / "r/images.csv")
    assert images[0]["image"] == "images/4.jpg"
    assert images[-1]["image"] == "images/5.jpg"
    assert images[-1]["mIoU"] == "" and images[-1]["labelled_pixels"] == "0"
    values = [float(row["mIoU"]) for row in images[:-1]]
    assert values == sorted(values)
    alone = evaluate(SegmentationMetric(), [data[4]])
    assert values[0] == pytest.approx(alone["mIoU"], rel=1e-12)
    assert float(images[0]["worst_class_IoU"]) == 0


@pytest.mark.parametrize("count", [2, 45])
def test_picture_shows_shares_of_rows(tmp_path: Path, count: int) -> None:
    confusion = np.diag(np.full(count, 10)).astype(np.int64)
    confusion[0] = 0  # no labelled pixel
    draw_confusion(tmp_path / "c.png", confusion, [f"class {k}" for k in range(count)])
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    dark = (pixels == (8, 48, 107)).all(1).sum()  # the map's end: 100 percent
    assert dark > 50 * (count - 1)


def report_rank(rank: int, world: int, folder: str) -> None:
    from mmengine.dataset import DefaultSampler

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    for count in (1, 7):
        data = samples(count)
        dealt = [data[index] for index in DefaultSampler(data, shuffle=False, seed=0)]
        metric = SegmentationMetric(report_dir=f"{folder}/{count}", boundary=0.05)
        evaluate(metric, dealt, size=count)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_report_does_not_depend_on_the_number_of_processes(tmp_path: Path, world: int) -> None:
    """1 and 7 images divide by neither 2 nor 4."""
    mp.start_processes(report_rank, (world, str(tmp_path)), nprocs=world, start_method="spawn")
    for count in (1, 7):
        alone = SegmentationMetric(report_dir=str(tmp_path / "alone"), boundary=0.05)
        evaluate(alone, samples(count))
        for name in FILES:
            both = [(tmp_path / folder / name).read_bytes() for folder in (str(count), "alone")]
            assert both[0] == both[1], name


@pytest.mark.slow
def test_counts_of_1e8_pixels_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    expected, counted = np.zeros((150, 150), np.int64), torch.zeros(150, 150, dtype=torch.int64)
    for _ in range(10):
        label: Any = rng.integers(0, 151, (2500, 4000), dtype=np.uint8)
        prediction = rng.integers(0, 150, (2500, 4000), dtype=np.uint8)
        label[label == 150] = 255
        valid = label != 255
        np.add.at(expected, (label[valid], prediction[valid]), 1)
        counted += count_confusion(
            torch.from_numpy(prediction),
            torch.from_numpy(label),
            num_classes=150,
            ignore_index=255,
            path="x",
        )
    assert np.array_equal(counted.numpy(), expected)
