from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.engine.hooks import PredictionPictureHook
from tests.engine.engine_toys import ToyData, runner


def train(tmp_path: Path, **options: Any) -> None:
    for index in range(4):
        Image.new("RGB", (6, 4), (200, 60 * index, 10)).save(tmp_path / f"{index}.png")
    runner(tmp_path, steps=6, with_val=True, **options).train()


def test_each_validation_leaves_a_picture_of_image_truth_and_prediction(tmp_path: Path) -> None:
    train(tmp_path, hooks=[{"type": "PredictionPictureHook", "num_images": 3, "tile": 60}])
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step_000003.png", "step_000006.png"]
    sheet = np.asarray(Image.open(tmp_path / "pictures" / names[-1]))
    assert sheet.shape[1] == 3 * 60 + 2 * 4
    rows = [16 + 20 + index * 44 for index in range(3)]  # title, then three strips of 40 pixels
    for index, row in enumerate(rows):
        assert sheet[row, 30].tolist() == [200, 60 * index, 10]  # image
        assert sheet[row, 94].tolist() == [70, 130, 180]  # truth is all 'sky'
        assert tuple(sheet[row, 158].tolist()) in ToyData.metainfo["palette"]  # prediction
    legend = sheet[16 + 3 * 44 :]
    assert (legend == [70, 130, 180]).all(-1).any()
    assert (legend.sum(-1) < 200).any()  # and its name


def test_pictures_reach_the_backends_at_their_step(tmp_path: Path) -> None:
    train(tmp_path, hooks=[{"type": "PredictionPictureHook"}])
    assert sorted(path.name for path in tmp_path.rglob("vis_image/*.png")) == [
        "predictions_3.png",
        "predictions_6.png",
    ]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_images=0"):
        PredictionPictureHook(num_images=0)
