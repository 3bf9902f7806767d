"""Views have the stated sizes, order and statistics, and depend on seed and place alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.pictures import picture, write_pictures
from PIL import Image

from dinov2_pretraining.data.views import MultiCropViews
from dinov2_pretraining.data.views.crop_boxes import draw_box
from mmseg_eomt.images.reading import read_image

PLAIN = {
    "flip_prob": 0.0,
    "blur_prob": (0.0, 0.0, 0.0),
    "solarise_prob": 0.0,
    "colors": {"jitter_prob": 0.0, "grey_prob": 0.0},
}


def views(transform: MultiCropViews, image: np.ndarray, seed: int = 0) -> dict[str, Any]:
    np.random.seed(seed)
    return transform.transform({"img": image[..., ::-1]})  # BGR


def test_views_have_the_stated_shapes_and_are_rgb() -> None:
    red = np.zeros((50, 40, 3), np.uint8)
    red[..., 0] = 200
    found = views(MultiCropViews(global_size=28, local_size=14, num_local=3, **PLAIN), red)
    assert set(found) == {"global_views", "local_views"}
    for name, shape in (("global_views", (2, 3, 28, 28)), ("local_views", (3, 3, 14, 14))):
        assert found[name].shape == shape and found[name].dtype == torch.uint8
        assert found[name].is_contiguous()
        assert found[name].amin(dim=(0, 2, 3)).tolist() == [200, 0, 0]


def test_without_changes_a_view_is_pillows_crop_of_the_image() -> None:
    image = picture(3)
    found = views(MultiCropViews(global_size=28, local_size=14, num_local=0, **PLAIN), image)
    np.random.seed(0)
    for view in found["global_views"]:
        top, left, rows, cols = draw_box(image.shape[:2], scale=(0.32, 1.0))
        for _ in range(5):  # flip, jitter, grey, blur, solarise
            np.random.random()
        box = (left, top, left + cols, top + rows)
        crop = Image.fromarray(image).crop(box).resize((28, 28), Image.Resampling.BICUBIC)
        assert np.abs(view.permute(1, 2, 0).numpy() - np.asarray(crop).astype(int)).max() <= 1


def test_half_of_the_views_are_mirrored() -> None:
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    transform = MultiCropViews(
        global_size=14, local_size=14, num_local=400, **{**PLAIN, "flip_prob": 0.5}
    )
    local = views(transform, ramp)["local_views"].int()
    assert abs((local[:, 0, 7, 0] > local[:, 0, 7, -1]).float().mean() - 0.5) < 0.1


def test_blur_and_solarisation_differ_between_the_kinds_of_view() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options: dict[str, Any] = {
        **PLAIN,
        "blur_prob": (1.0, 0.1, 0.5),
        "global_scale": (1.0, 1.0),
        "local_scale": (1.0, 1.0),
        "colors": {**PLAIN["colors"], "blur_sigma": (2.0, 2.0)},
    }
    transform = MultiCropViews(global_size=64, local_size=64, num_local=2, **options)
    spread = np.array(
        [
            [
                view.float().std().item()
                for key in ("global_views", "local_views")
                for view in v[key]
            ]
            for v in (views(transform, noise, seed) for seed in range(150))
        ]
    )
    blurred = (spread < 40).mean(axis=0)  # of 74 without
    assert blurred[0] == 1.0 and 0.03 < blurred[1] < 0.18
    assert abs(blurred[2:].mean() - 0.5) < 0.1

    bright = np.full((32, 32, 3), 240, np.uint8)
    transform = MultiCropViews(
        global_size=14, local_size=14, num_local=1, **{**PLAIN, "solarise_prob": 0.2}
    )
    dark = np.array(
        [
            [v["global_views"][0].max() < 20, v["global_views"][1].max() < 20]
            + [v["local_views"].max() < 20]
            for v in (views(transform, bright, seed) for seed in range(300))
        ]
    ).mean(axis=0)
    assert dark[0] == 0 and dark[2] == 0 and abs(dark[1] - 0.2) < 0.07


def test_equal_seeds_give_equal_views_and_other_seeds_others() -> None:
    transform = MultiCropViews(global_size=28, local_size=14)
    first, again, other = (views(transform, picture(0), seed) for seed in (5, 5, 6))
    for key in ("global_views", "local_views"):
        assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])


def test_large_jpegs_are_read_small_and_give_nearly_the_same_views(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(picture(1, width=400, height=300)).save(path, quality=95)
    transform = MultiCropViews(global_size=28, local_size=14, num_local=4, **PLAIN)
    assert read_image(str(path), min_pixels=transform.min_pixels).shape == (75, 100, 3)
    np.random.seed(0)
    found = transform.transform({"img_path": str(path)})
    whole = views(transform, np.asarray(Image.open(path)))
    for key in ("global_views", "local_views"):
        # Regions are rounded to pixels of the smaller image.
        assert (found[key].int() - whole[key].int()).abs().float().mean() < 6


def test_a_file_is_read_once_for_all_views(tmp_path: Path, monkeypatch: Any) -> None:
    (path,) = write_pictures(tmp_path, 1)
    read: list[str] = []
    module = "dinov2_pretraining.data.views.multi_crop.read_image"
    monkeypatch.setattr(module, lambda p, **k: read.append(p) or read_image(p, **k))
    MultiCropViews(global_size=28, local_size=14).transform({"img_path": str(path)})
    assert read == [str(path)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"global_size": 0}, "global_size is 0"),
        ({"num_local": -1}, "num_local is -1"),
        ({"local_scale": (0.4, 0.3)}, "local_scale"),
        ({"global_scale": (0.5, 1.5)}, "global_scale"),
        ({"flip_prob": 2}, "flip_prob is 2"),
        ({"blur_prob": (1.0, 2.0, 0.5)}, "blur_prob is 2.0"),
    ],
)
def test_wrong_numbers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiCropViews(**wrong)
