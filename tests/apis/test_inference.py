"""Loading a model from its file, and predicting any kind of image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_eomt import optimize_for_inference
from mmseg_eomt.apis.inference import SegmentationModel, build_segmentor, load_model, predict_files
from mmseg_eomt.checkpoints.weights_file import save_weights
from mmseg_eomt.images.prediction_files import IMAGES
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from tests.apis.tiny import ARCH, CLASSES, tiny_header


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


SIZE = (48, 80)


def _model(family: str = "dinov3") -> SegmentationModel:
    """A model whose queries are sure of their classes and masks, as trained ones are."""
    torch.manual_seed(0)
    header = tiny_header(family=family, architecture={**ARCH, "embed_dims": 32})
    segmentor: Any = build_segmentor(header)
    with torch.no_grad():
        for parameter in segmentor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        segmentor.decode_head.class_head.weight.normal_(std=2.0)
        segmentor.decode_head.mask_head[-1].weight.mul_(4.0)
    return SegmentationModel(segmentor, header)


def _image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)


def _logits(model: SegmentationModel) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        masks, classes = model.segmentor.network(_image()[None, :, :32, :32] / 64.0 - 2)
    return masks.float(), classes.float()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_folded_weights_change_nothing_but_rounding(family: str, channels_last: bool) -> None:
    plain, fast = _model(family), _model(family)
    assert optimize_for_inference(fast, channels_last=channels_last) is fast
    assert any("folded" in line for line in fast.segmentor.optimizations)
    names = [name for name, _ in fast.segmentor.named_parameters()]
    assert not [n for n in names if "gamma" in n or "q_bias" in n], "nothing left to fold"
    for got, expected in zip(_logits(fast), _logits(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    expected = plain.predict(_image())
    assert len(expected.unique()) > 1, "a plain picture would hide every fault"
    assert (fast.predict(_image()) == expected).float().mean() > 0.999


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_the_label_map(dtype: str) -> None:
    plain, fast = _model(), optimize_for_inference(_model(), dtype=dtype)
    assert {p.dtype for p in fast.segmentor.parameters()} == {
        {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    }
    agreement = (fast.predict(_image()) == plain.predict(_image())).float().mean()
    assert agreement >= 0.99, agreement


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_a_compiled_network_gives_the_same_label_map(family: str) -> None:
    plain, fast = _model(family), optimize_for_inference(_model(family), compile="default")
    for got, expected in zip(_logits(fast), _logits(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    agreement = (fast.predict(_image()) == plain.predict(_image())).float().mean()
    assert agreement > 0.999


def test_a_segmentor_alone_is_taken() -> None:
    segmentor = _model().segmentor
    assert isinstance(optimize_for_inference(segmentor), EoMTSegmentor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "'int8'.*'bf16'"),
        ({"compile": "fastest"}, "'fastest'.*'max-autotune'"),
        ({"cuda_graphs": True}, "compile='default'"),
        ({"cuda_graphs": True, "compile": "default"}, "on cpu.*GPU"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(_model(), **arguments)


def test_optimising_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        optimize_for_inference(optimize_for_inference(_model()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_image_gets_its_own_mask(tmp_path: Path, precision: str) -> None:
    weights, images = tmp_path / "w.safetensors", tmp_path / "images"
    save_weights(weights, build_segmentor(tiny_header()), tiny_header())
    images.mkdir()
    rng = np.random.default_rng(0)
    count = IMAGES + 2  # the last forward pass is not full
    for index in range(count):
        pixels = rng.integers(0, 256, (20 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    out = tmp_path / "out"
    written = predict_files(weights, images, out, device="cpu", precision=precision)
    assert written == count
    model = load_model(weights, device="cpu")
    for index in range(count):
        mask = np.asarray(Image.open(out / "masks" / f"{index}.png"))
        expected = model.predict(images / f"{index}.png").numpy()
        assert mask.shape == expected.shape
        share = (mask == expected).mean()
        assert share > (0.999 if precision == "fp32" else 0.9), (index, share)
        assert (out / "overlays" / f"{index}.png").is_file()
