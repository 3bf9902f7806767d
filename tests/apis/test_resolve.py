"""Images of four bands from training to predictions, and what is refused on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from PIL import Image

from mmseg_eomt.apis import load_model, train_semantic_segmentation
from mmseg_eomt.apis.inference import predict_files
from mmseg_eomt.apis.run import run_test
from mmseg_eomt.apis.train import resolve_training
from tests.apis.tiny import CLASSES, FEW_FILES, make_data, tiny_call

NORMALIZE = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.5, 0.5, 0.5]}


def four_bands(root: Path) -> dict[str, Any]:
    """`make_data` with TIFFs of four bands, 16 bits each."""
    data = make_data(root)
    rng = np.random.default_rng(1)
    for path in sorted(root.glob("*/images/*.png")):
        path.unlink()
        values = rng.integers(0, 65536, (30, 40, 4), dtype=np.uint16)
        tifffile.imwrite(
            path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig"
        )
    return data


def call(data: Any, **changes: Any) -> dict[str, Any]:
    arguments = tiny_call(data, **FEW_FILES)
    arguments["model_args"]["in_channels"] = 4
    arguments["transform_args"]["normalize"] = NORMALIZE
    return {**arguments, **changes}


def test_four_bands_from_training_to_predictions(tmp_path: Path) -> None:
    data = four_bands(tmp_path / "d")
    out = train_semantic_segmentation(out=tmp_path / "run", **call(data))
    weights = out / "exported/last.safetensors"
    model = load_model(weights)
    assert model.header.in_channels == 4 and not model.header.bgr_to_rgb
    assert np.allclose(model.header.mean, np.array(NORMALIZE["mean"]) * 255)

    path = tmp_path / "d/val/images/0.tif"
    mask = model.predict(path)
    bands = (tifffile.imread(path) >> 8).astype(np.uint8)
    assert torch.equal(model.predict(bands), mask)
    assert torch.equal(model.predict(torch.from_numpy(bands).permute(2, 0, 1)), mask)
    assert set(mask.unique().tolist()) <= set(CLASSES)
    assert torch.equal(model.predict(Image.fromarray(bands)), mask)  # RGBA: the same four bands

    assert predict_files(weights, path.parent, tmp_path / "p") == 2
    written = np.asarray(Image.open(tmp_path / "p/masks/0.png"))
    assert np.array_equal(written, mask.numpy())
    assert Image.open(tmp_path / "p/overlays/0.png").mode == "RGB"

    cfg = Config.fromfile(next(out.glob("*.py")))
    cfg.work_dir = str(tmp_path / "test")
    assert 0 <= run_test(cfg, weights, data=data)["mIoU"] <= 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transform_args": {"image_size": 32}},
            r"mean has 3 numbers .*in_channels is 4: give one",
        ),
        ({"model_args": {"in_channels": 0}}, r"in_channels is 0: give a whole number from 1"),
    ],
)
def test_channels_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_training(
            out=tmp_path / "run",
            **{k: v for k, v in call(four_bands(tmp_path), **changes).items() if k != "devices"},
        )


def test_files_of_other_channels_are_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.png: the image has 3 channels, the model takes 4"):
        resolve_training(out=tmp_path / "run", **call(make_data(tmp_path / "a")))
    arguments = tiny_call(four_bands(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"0\.tif: the image has 4 channels, the model takes 3"):
        resolve_training(out=tmp_path / "run", **arguments)


def test_only_folder_datasets_have_other_channels(tmp_path: Path) -> None:
    from mmseg_eomt.apis.options import load_model_config
    from mmseg_eomt.apis.resolve import set_channels

    cfg = load_model_config("dinov3/vits16-eomt")
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[1.0], std=[1.0])
    cfg.val_dataloader.dataset.type = "ADE20KDataset"
    with pytest.raises(ValueError, match=r"val_dataloader reads ADE20KDataset, which gives three"):
        set_channels(cfg)
