"""tools/test.py --report, as users run it: its files hold what NumPy counts in the written maps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from mmseg_eomt.commands import test as command
from tests.deploy.lively import CLASSES, lively_config, lively_weights, picture
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
FILES = ["classes.csv", "confusion.csv", "confusion.png", "images.csv"]
NAMES, IDS = list(CLASSES.values()), list(CLASSES)
SIZES = [(40, 52), (40, 52), (64, 36), (33, 33), (52, 40)]  # five do not divide by two processes
SHARE = 0.05
UNLABELLED = 255


def run_tool_test(arguments: list[str]) -> None:
    """Runs tools/test.py in this process; also what each of several processes does."""
    assert command.main(arguments) == 0


def make_data(folder: Path) -> None:
    """Pictures and masks of blobs in five classes, the last row of one image unlabelled."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        noise = rng.random((*size, len(IDS))).astype(np.float32)
        mask = np.array(IDS, np.uint16)[cv2.GaussianBlur(noise, (0, 0), 4).argmax(-1)]
        if number == 1:
            mask[-7:] = UNLABELLED
        for name, content in (("images", picture(size, seed=number)), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = content if name == "images" else Image.fromarray(content)
            image.save(folder / name / f"{number}.png")
    split = {"images": str(folder / "images"), "masks": str(folder / "masks")}
    data = {"classes": dict(CLASSES), "train": split, "val": split, "test": split}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))


def arguments(folder: Path, report: Path, *more: str) -> list[str]:
    return [
        *(str(folder / "model.py"), str(folder / "w.safetensors")),
        *("--data", str(folder / "data" / "data.yaml"), "--work-dir", str(report / "run")),
        *("--report", str(report), "--boundary", str(SHARE), *more, "--debug", "--cfg-options"),
        *("test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_data(tmp_path / "data")
    lively_weights(tmp_path / "w.safetensors")
    cfg = lively_config()
    cfg.model.decode_head.num_queries = 8
    cfg.dump(tmp_path / "model.py")
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def classes_of(ids: np.ndarray) -> np.ndarray:
    """Class indices of a mask or map of ids; -1 for what is none."""
    found = np.full(ids.shape, -1)
    for index, number in enumerate(IDS):
        found[ids == number] = index
    return found


def band(mask: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & ~eroded.astype(bool)


def percent(part: Any, whole: Any) -> float:
    return float(100 * part / whole)


def test_files_hold_what_is_counted_in_the_written_maps(folder: Path) -> None:
    report = folder / "report"
    run_tool_test(arguments(folder, report, "--out", str(folder / "maps")))
    assert sorted(path.name for path in report.iterdir() if path.is_file()) == FILES
    count = len(NAMES)
    confusion = np.zeros((count, count), np.int64)
    bands = np.zeros((3, count), np.int64)
    accuracy, mean_iou = {}, {}
    for number, size in enumerate(SIZES):
        label = classes_of(np.asarray(Image.open(folder / f"data/masks/{number}.png")))
        prediction = classes_of(np.asarray(Image.open(folder / f"maps/{number}.png")))
        assert label.shape == prediction.shape == size
        assert prediction.min() >= 0
        prediction[label < 0] = -1
        own = np.zeros_like(confusion)
        width = max(1, round(SHARE * float(np.hypot(*size))))
        for true in range(count):
            for found in range(count):
                own[true, found] = ((label == true) & (prediction == found)).sum()
            truth, guess = band(label == true, width), band(prediction == true, width)
            bands[:, true] += truth.sum(), guess.sum(), (truth & guess).sum()
        confusion += own
        accuracy[f"{number}.png"] = percent(np.trace(own), own.sum())
        there = [k for k in range(count) if own[k].sum() + own[:, k].sum()]
        mean_iou[f"{number}.png"] = np.mean(
            [percent(own[k, k], own[k].sum() + own[:, k].sum() - own[k, k]) for k in there]
        )
    # A test of a model that knows one class alone would show little.
    assert (confusion.sum(0) > 0).sum() >= 3

    table = rows(report / "confusion.csv")
    assert [[int(row[name]) for name in NAMES] for row in table] == confusion.tolist()
    for k, row in enumerate(rows(report / "classes.csv")):
        hit, true, found = confusion[k, k], confusion[k].sum(), confusion[:, k].sum()
        assert row["class"] == NAMES[k] and int(row["labelled_pixels"]) == true
        expected = {
            "IoU": percent(hit, true + found - hit),
            "Acc": percent(hit, true),
            "Dice": percent(2 * hit, true + found),
            "Recall": percent(hit, true),
            "BoundaryIoU": percent(bands[2, k], bands[0, k] + bands[1, k] - bands[2, k]),
        }
        if found:
            expected["Precision"] = percent(hit, found)
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-9), (NAMES[k], name)
    images = rows(report / "images.csv")
    scores = {Path(row["image"]).name: float(row["mIoU"]) for row in images}
    assert scores == pytest.approx(mean_iou, rel=1e-9)
    assert list(scores.values()) == sorted(scores.values())
    assert {Path(r["image"]).name: float(r["aAcc"]) for r in images} == pytest.approx(accuracy)
    with Image.open(report / "confusion.png") as picture_of_it:
        assert min(picture_of_it.size) > 200


def test_two_processes_write_the_same_report(folder: Path) -> None:
    """Five images: one process would test one of them twice."""
    run_tool_test(arguments(folder, folder / "one"))
    both = arguments(folder, folder / "both", "--launcher", "pytorch")
    run_ranks(2, "tests.commands.test_report:run_tool_test", both, log=folder / "log")
    for name in FILES:
        assert (folder / "both" / name).read_bytes() == (folder / "one" / name).read_bytes(), name
