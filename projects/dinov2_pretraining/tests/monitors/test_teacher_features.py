"""Features are the teacher's, of the central square, in the order of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data.pictures import picture, write_pictures
from PIL import Image
from pretraining_toys import tiny_model
from torchvision.transforms import functional as F

from dinov2_pretraining.monitors.due import check_interval, is_due
from dinov2_pretraining.monitors.teacher_features import (
    central_view,
    class_tokens,
    teacher_features,
)


@pytest.mark.parametrize("size", [(80, 120), (120, 80)])
def test_the_central_view_is_that_of_imagenets_evaluations(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(picture(0, height=size[0], width=size[1])).save(path)
    found = central_view(str(path), 56)
    resized = F.resize(Image.open(path), 64, F.InterpolationMode.BICUBIC)
    expected = np.asarray(F.center_crop(resized, [56, 56])).astype(int)
    # There the picture is resized whole: its rounded size moves it by a part of a pixel.
    assert found.shape == (56, 56, 3) and np.abs(found - expected).mean() < 2


def test_tokens_are_the_teachers_in_the_order_of_the_files(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)  # the student is another one
    paths = [str(path) for path in write_pictures(tmp_path, 7)]
    found = class_tokens(model, paths, size=32, batch_size=3)
    assert found.shape == (7, 16) and not found.requires_grad
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    for path, row in zip(paths, found, strict=True):
        pixels = torch.from_numpy(central_view(path, 32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = model.teacher.encoder((pixels.float() - mean) / std)[0][0]
        assert torch.allclose(row, expected, atol=1e-5)
    assert class_tokens(model, [], size=32, batch_size=3).shape == (0, 16)


def test_patches_come_row_by_row() -> None:
    model = tiny_model()
    classes, patches = teacher_features(model, np.zeros((2, 32, 48, 3), np.uint8))
    assert classes.shape == (2, 16) and patches.shape == (2, 24, 16)
    assert patches.dtype == torch.float32


@pytest.mark.parametrize(
    "interval, total, expected",
    [
        (0.25, 8, [0, 2, 4, 6, 8]),
        (3, 8, [0, 3, 6, 8]),
        (1.0, 5, [0, 5]),
        (0.01, 3, [0, 1, 2, 3]),
    ],
)
def test_monitors_look_at_intervals_and_at_the_end(
    interval: float | int, total: int, expected: list[int]
) -> None:
    due = [done for done in range(total + 1) if is_due(done, total=total, interval=interval)]
    assert due == expected


@pytest.mark.parametrize("interval", [0, 0.0, 1.5, -1, True])
def test_other_intervals_are_refused(interval: float | int) -> None:
    with pytest.raises(ValueError, match=r"x is .*: give a share"):
        check_interval(interval, name="x")
