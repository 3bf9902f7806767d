"""The procedural dataset: seeded, valid, not solvable by colour, and never over others' files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope

from mmseg_eomt.datasets import FolderSegDataset
from mmseg_eomt.evaluation.confusion import class_scores

TOOL = Path(__file__).parents[2] / "tools" / "make_dataset.py"


def make(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), str(out), *options], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "made"
    assert make(out, "--images", "40", "--val", "16").returncode == 0
    return out


def read(out: Path, split: str) -> list[dict[str, np.ndarray]]:
    init_default_scope("mmseg")
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
    data = FolderSegDataset(out / "data.yaml", split=split, pipeline=pipeline)
    return [data[index] for index in range(len(data))]


def confusion(labels: list[np.ndarray], predictions: list[np.ndarray], classes: int) -> np.ndarray:
    cells = [t.ravel() * classes + p.ravel() for t, p in zip(labels, predictions, strict=True)]
    counts = np.bincount(np.concatenate(cells), minlength=classes**2)
    return counts.reshape(classes, classes)


def mean_iou(counts: np.ndarray) -> float:
    return float(np.nanmean(class_scores(counts, ["mIoU"])["IoU"]))


def test_folder_dataset_reads_it_and_every_class_appears(dataset: Path) -> None:
    train, val = read(dataset, "train"), read(dataset, "val")
    assert (len(train), len(val)) == (40, 16)
    for part in (train, val):
        share = np.bincount(np.concatenate([s["gt_seg_map"].ravel() for s in part]), minlength=6)
        assert len(share) == 6 and (share / share.sum()).min() > 0.02


def test_neither_a_constant_nor_colour_alone_solves_it(dataset: Path) -> None:
    """Below 0.15 and 0.4 mIoU, so that more means that shape and texture were learnt."""
    train, val = read(dataset, "train"), read(dataset, "val")
    labels = [sample["gt_seg_map"].astype(int) for sample in val]
    for k in range(6):
        assert mean_iou(confusion(labels, [np.full_like(x, k) for x in labels], 6)) < 0.15

    def cells(sample: dict[str, np.ndarray]) -> np.ndarray:
        return (sample["img"] // 32).astype(int) @ np.array([64, 8, 1])

    histogram = np.zeros((6, 512))
    for sample in train:
        np.add.at(histogram, (sample["gt_seg_map"], cells(sample)), 1)
    best = (histogram / histogram.sum(1, keepdims=True)).argmax(0)
    assert mean_iou(confusion(labels, [best[cells(sample)] for sample in val], 6)) < 0.4


def test_same_seed_same_scenes_other_seed_other_scenes(tmp_path: Path) -> None:
    options = ("--images", "2", "--val", "1", "--size", "64x48")
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert make(tmp_path / name, *options, "--seed", seed).returncode == 0
    scenes = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("scene_*"))]
        for name in "abc"
    }
    assert len(scenes["a"]) == 6
    assert scenes["a"] == scenes["b"] != scenes["c"]
    assert scenes["a"][0] != scenes["a"][1]


def test_own_folder_is_written_anew_without_leftovers(tmp_path: Path) -> None:
    options = ("--val", "1", "--size", "64x48")
    assert make(tmp_path / "x", "--images", "3", *options).returncode == 0
    (tmp_path / "x/notes.txt").write_text("mine")
    assert make(tmp_path / "x", "--images", "1", *options).returncode == 0
    assert len(list((tmp_path / "x/train/images").iterdir())) == 1
    assert (tmp_path / "x/notes.txt").read_text() == "mine"


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: mine")
    result = make(tmp_path, "--images", "1", "--val", "1")
    assert result.returncode == 1
    assert "was not made by this tool" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.yaml"]


@pytest.mark.parametrize("options", [("--size", "10x10"), ("--size", "big"), ("--images", "0")])
def test_wrong_arguments_are_explained(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = make(tmp_path / "x", *options)
    assert result.returncode == 2 and options[0] in result.stderr
    assert not (tmp_path / "x").exists()
