from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmseg_eomt import export_onnx, load_model
from mmseg_eomt.deploy.verify import MiouPair
from tests.deploy.lively import CLASSES, lively_weights, picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    lively_weights(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Any]:
    """Images, and masks of what the model predicts with a tenth of the rows wrong."""
    root = tmp_path_factory.mktemp("data")
    model = load_model(weights, device="cpu")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for seed in range(3):
        image = picture((60, 50 + 10 * seed), seed=seed)
        image.save(root / "images" / f"{seed}.png")
        ids = model.predict(root / "images" / f"{seed}.png").numpy()
        assert len(np.unique(ids)) >= 3
        ids[:6] = 3
        Image.fromarray(ids.astype(np.uint16)).save(root / "masks" / f"{seed}.png")
    folders = {"images": str(root / "images"), "masks": str(root / "masks")}
    return {"train": folders, "val": folders, "classes": dict(CLASSES)}


def test_miou_of_both_is_measured_at_the_images_own_size(
    tmp_path: Path, weights: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = export_onnx(tmp_path / "m.onnx", checkpoint=weights, data=data)
    assert result.miou is not None
    expected = _miou(weights, data)
    assert 50 < expected < 100
    assert result.miou.reference == pytest.approx(expected, abs=1e-9)
    assert result.miou.exported == pytest.approx(expected, abs=0.05)
    assert (result.miou.images, result.miou.max_drop) == (3, 0.05)
    text = " ".join(capsys.readouterr().out.split())
    assert f"mIoU on 3 validation images: PyTorch {expected:.2f}" in text
    assert "Compared on 3 pictures of the validation images" in text


def test_file_that_loses_more_than_allowed_is_not_written(
    tmp_path: Path, weights: Path, data: dict[str, Any]
) -> None:
    # Even the same model does not gain a point.
    with pytest.raises(ValueError, match=r"loses -?0\.\d\d mIoU, more than the -1 allowed"):
        export_onnx(tmp_path / "m.onnx", checkpoint=weights, data=data, max_drop=-1)
    assert list(tmp_path.iterdir()) == []


def test_dataset_of_other_classes_is_refused(
    tmp_path: Path, weights: Path, data: dict[str, Any]
) -> None:
    other = {**data, "classes": {**CLASSES, 12: "boat"}}
    with pytest.raises(ValueError, match=r"are not those of the model \(\[3, 7, 9, 11, 300\]\)"):
        export_onnx(tmp_path / "m.onnx", checkpoint=weights, data=other)


def test_labels_alone_cannot_be_put_together(tmp_path: Path, weights: Path, data: Any) -> None:
    with pytest.raises(ValueError, match=r"outputs is 'labels', but mIoU on `data` takes scores"):
        export_onnx(tmp_path / "m.onnx", checkpoint=weights, data=data, outputs="labels")


def test_a_drop_that_is_no_number_fails() -> None:
    assert MiouPair(50.0, float("nan"), 3, 1.0).failed
    assert MiouPair(50.0, 48.9, 3, 1.0).failed
    assert not MiouPair(50.0, 49.1, 3, 1.0).failed


def _miou(weights: Path, data: dict[str, Any]) -> float:
    model = load_model(weights, device="cpu")
    hits, unions = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for path in sorted(Path(data["val"]["images"]).iterdir()):
        found = model.predict(path).numpy()
        truth = np.asarray(Image.open(Path(data["val"]["masks"]) / path.name))
        for index, value in enumerate(CLASSES):
            hits[index] += ((found == value) & (truth == value)).sum()
            unions[index] += ((found == value) | (truth == value)).sum()
    return float(100 * (hits[unions > 0] / unions[unions > 0]).mean())
