"""Files of predictions: many images a forward pass, the same ids as one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.apis.inference import build_segmentor, load_model
from mmseg_eomt.apis.predict_files import predict_files
from mmseg_eomt.checkpoints.weights_file import save_weights
from mmseg_eomt.images.prediction_files import IMAGES
from tests.apis.tiny import tiny_header


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
