"""The hooks look at the run and leave no trace in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.pictures import write_pictures
from mmengine.registry import init_default_scope
from PIL import Image
from pretraining_toys import GLOBAL, LOCAL, PATCH, runner

from dinov2_pretraining.monitors import LabelledAccuracyHook, PatchPictureHook
from mmseg_eomt.datasets.skipping import TooManyBadFilesError


def loader(folder: Path, **dataset: Any) -> dict[str, Any]:
    views = {"global_size": GLOBAL, "local_size": LOCAL, "num_local": 2}
    return {
        "batch_size": 4,
        "num_workers": 0,
        "sampler": {"type": "StepSampler"},
        "collate_fn": {"type": "collate_views", "patch_size": PATCH},
        "dataset": {
            "type": "UnlabelledImages",
            "data": str(folder),
            "pipeline": [{"type": "SeedSample"}, {"type": "MultiCropViews", **views}],
            **dataset,
        },
    }


def make(folder: Path, images: Path, hooks: list[Any], **options: Any) -> Any:
    dataset = options.pop("dataset", {})
    steps = options.pop("steps", 4)
    init_default_scope("mmseg")
    return runner(folder, steps=steps, hooks=hooks, loader=loader(images, **dataset), **options)


def scalars(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_pictures(folder, 8)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright class and a dark one."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, first in (("bright", 0), ("dark", 20)):
        for path in write_pictures(folder / name, 10, first=first):
            pixels = np.asarray(Image.open(path)) // 2 + (120 if name == "bright" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def test_accuracy_and_pictures_are_written_and_training_is_the_same_without_them(
    tmp_path: Path, images: Path, labelled: Path
) -> None:
    hooks = [
        {
            "type": "LabelledAccuracyHook",
            "folder": str(labelled),
            "interval": 0.5,
            "size": GLOBAL,
            "batch_size": 3,
        },
        {"type": "PatchPictureHook", "num_images": 3, "grid": 6, "interval": 3},
        {"type": "TrainingDataHook"},
    ]
    watched = make(tmp_path / "watched", images, hooks)
    watched.train()
    plain = make(tmp_path / "plain", images, [])
    plain.train()
    for name, value in watched.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name

    lines = [line for line in scalars(tmp_path / "watched") if "knn_accuracy" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    # Even a teacher that has learnt nothing sees brightness.
    assert all(line["linear_accuracy"] == 100.0 for line in lines)
    assert all(line["knn_accuracy"] >= 75.0 for line in lines)

    pictures = sorted((tmp_path / "watched" / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"patches_{n:06d}.png" for n in (0, 3, 4)]
    with Image.open(pictures[0]) as sheet:
        side = 6 * PATCH
        assert sheet.size == (3 * side + 8, 3 * side + 8)


def test_without_a_folder_nothing_is_measured(tmp_path: Path, images: Path) -> None:
    make(tmp_path, images, [{"type": "LabelledAccuracyHook"}], steps=2).train()
    assert not any("knn_accuracy" in line for line in scalars(tmp_path))


def test_a_resumed_run_does_not_repeat_the_first_look(tmp_path: Path, images: Path) -> None:
    hooks = [{"type": "PatchPictureHook", "num_images": 1, "grid": 4, "interval": 1.0}]
    make(tmp_path, images, hooks, steps=2, every=2).train()
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    make(tmp_path, images, hooks, steps=4, every=2, resume=True).train()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["patches_000004.png"]


def test_a_bad_file_is_counted_in_the_log_and_replaced_in_the_picture(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_pictures(images, 8)[0].write_bytes(b"no picture")
    hooks = [
        {"type": "TrainingDataHook"},
        {"type": "PatchPictureHook", "num_images": 2, "grid": 4, "interval": 4},
    ]
    make(tmp_path / "run", images, hooks).train()
    lines = [line for line in scalars(tmp_path / "run") if "loss" in line]
    assert lines[-1]["skipped_files"] == 1
    (log,) = (tmp_path / "run").glob("*/*.log")
    text = log.read_text()
    assert text.count("000.png: unreadable image") == 1
    assert "1 of 8 training images could not be read" in text


def test_more_bad_files_than_allowed_end_the_run(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for path in write_pictures(images, 8)[:2]:
        path.write_bytes(b"no picture")
    with pytest.raises(TooManyBadFilesError, match="2 of 8"):
        make(tmp_path / "run", images, [{"type": "TrainingDataHook"}]).train()


def test_fewer_images_than_a_step_takes_are_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_pictures(images, 3)
    with pytest.raises(ValueError, match=r"3 images, but a step takes 4 .*at most 3"):
        make(tmp_path / "run", images, [{"type": "TrainingDataHook"}]).train()


@pytest.mark.parametrize(
    "make_hook, message",
    [
        (lambda f: LabelledAccuracyHook(interval=0), "LabelledAccuracyHook.interval is 0"),
        (lambda f: LabelledAccuracyHook(size=0), "size is 0"),
        (lambda f: LabelledAccuracyHook(val_folder="x"), "give folder, too"),
        (lambda f: PatchPictureHook(grid=2), "grid=2"),
        (lambda f: PatchPictureHook(interval=2.0), "PatchPictureHook.interval is 2.0"),
    ],
)
def test_wrong_arguments_are_refused(make_hook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_hook(None)


def test_folders_of_other_classes_are_refused(tmp_path: Path, labelled: Path) -> None:
    for name in ("bright", "grey"):
        write_pictures(tmp_path / name, 1)
    with pytest.raises(ValueError, match="only one of them has dark, grey"):
        LabelledAccuracyHook(folder=labelled, val_folder=tmp_path)
