"""Loading a model from its file, and predicting any kind of image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_eomt.apis.inference import SegmentationModel, build_segmentor, load_model
from mmseg_eomt.checkpoints.weights_file import save_weights
from tests.apis.tiny import CLASSES, tiny_header


@pytest.fixture
def model(tmp_path: Path) -> SegmentationModel:
    save_weights(tmp_path / "w.safetensors", build_segmentor(tiny_header()), tiny_header())
    return load_model(tmp_path / "w.safetensors", device="cpu")


def test_all_kinds_of_image_give_the_same_ids(model: SegmentationModel, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = model.predict(pixels)
    assert expected.shape == (23, 41)
    assert expected.dtype == torch.int64
    assert set(expected.unique().tolist()) <= set(CLASSES)
    for image in (
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        Image.fromarray(pixels),
        tensor,
        tensor.float() / 255,
    ):
        assert torch.equal(model.predict(image), expected)
    # Red and blue are not the same to the network.
    assert not torch.equal(model.predict(pixels[..., ::-1]), expected)


def test_batch_of_different_sizes_equals_single_images(model: SegmentationModel) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((20, 60), (50, 33))]
    for mask, image in zip(model.predict_batch(images), images, strict=True):
        assert torch.equal(mask, model.predict(image))


def test_overlay_has_the_class_colours(model: SegmentationModel) -> None:
    pixels = np.full((8, 8, 3), 100, np.uint8)
    mask = torch.full((8, 8), 7)
    painted = np.asarray(model.overlay(pixels, mask, opacity=1.0))
    assert (painted == model.palette[7]).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        torch.full((3, 4, 4), 7.0),
        torch.zeros(1, 3, 4, 4),
        5,
    ],
)
def test_wrong_images_say_what_is_taken(model: SegmentationModel, image: object) -> None:
    with pytest.raises(ValueError, match="image is"):
        model.predict(image)  # type: ignore[arg-type]
