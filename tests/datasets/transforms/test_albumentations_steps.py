"""albumentations in a pipeline: exact under seeds, safe for labels."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from mmseg.registry import TRANSFORMS
from torch.utils.data import DataLoader, Dataset

from mmseg_eomt.datasets import SampleIndex
from mmseg_eomt.datasets.transforms import AlbumentationsSteps, SeedSample

pytest.importorskip("albumentations")

STEPS = [
    dict(type="Affine", rotate=(-40, 40), shear=10, p=0.9),
    dict(type="OneOf", transforms=[dict(type="GaussianBlur"), dict(type="GaussNoise")], p=0.7),
    dict(type="HorizontalFlip", p=0.5),
    dict(type="VerticalFlip", p=0.5),
]


def sample(index: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    labels = np.kron(rng.integers(0, 4, (4, 5), dtype=np.uint8), np.ones((8, 8), np.uint8))
    return {
        "sample_idx": SampleIndex(index, 10 + index, 3),
        "img": rng.integers(0, 256, (32, 40, 3), dtype=np.uint8),
        "gt_seg_map": labels,
        "seg_fields": ["gt_seg_map"],
    }


class Samples(Dataset[Any]):
    def __init__(self) -> None:
        self.steps = [SeedSample(), AlbumentationsSteps(STEPS)]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        results = sample(index)
        for step in self.steps:
            results = step(results)
        return results["img"], results["gt_seg_map"]


def test_draws_depend_on_seed_and_position_only() -> None:
    alone = [Samples()[index] for index in range(12)]
    shared = list(DataLoader(Samples(), batch_size=None, num_workers=2))
    for mine, other in zip(alone, shared, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert np.array_equal(a, np.asarray(b))
    assert len({image.tobytes() for image, _ in alone}) == 12


def test_what_comes_from_outside_is_unlabelled() -> None:
    step = AlbumentationsSteps([dict(type="Affine", rotate=(45, 45), p=1.0)])
    results = sample()
    results["gt_seg_map"][:] = 2
    labels = step(results)["gt_seg_map"]
    assert set(np.unique(labels)) == {2, 255}
    assert labels[0, 0] == 255 and labels[16, 20] == 2 and labels.dtype == np.uint8
    results["gt_seg_map"][:] = 255
    assert (step(results)["gt_seg_map"] == 255).all()


def test_transforms_draw_independently_of_each_other() -> None:
    step = AlbumentationsSteps(STEPS[2:])
    np.random.seed(0)
    seen = set()
    for _ in range(60):
        results = sample()
        results["gt_seg_map"] = np.arange(4, dtype=np.uint8).reshape(2, 2)
        results["img"] = np.zeros((2, 2, 3), np.uint8)
        seen.add(step(results)["gt_seg_map"].tobytes())
    assert len(seen) == 4  # albumentations' own seeding would flip both or none


def test_colours_are_in_the_order_that_albumentations_expects() -> None:
    results = sample()
    results["img"] = np.zeros((4, 4, 3), np.uint8)
    results["img"][..., 2] = 100  # red in BGR
    results["gt_seg_map"] = np.zeros((4, 4), np.uint8)
    weights = dict(type="ToGray", method="weighted_average", p=1.0)
    grey = AlbumentationsSteps([weights])(results)["img"]
    assert abs(int(grey[0, 0, 0]) - 30) <= 1  # 0.299 of red; 11 if it were taken for blue


def test_size_follows_and_four_channels_pass() -> None:
    step = TRANSFORMS.build(
        dict(type="AlbumentationsSteps", transforms=[dict(type="CenterCrop", height=8, width=10)])
    )
    results = sample()
    results["img"] = np.zeros((32, 40, 4), np.uint8)
    results = step(results)
    assert results["img"].shape == (8, 10, 4) and results["gt_seg_map"].shape == (8, 10)
    assert results["img_shape"] == results["pad_shape"] == (8, 10)
    assert AlbumentationsSteps(STEPS)({"img": sample()["img"]})["img"].shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (dict(type="Rotat"), "'Rotat' is no transform of albumentations 2"),
        (dict(p=1.0), "None is no transform"),
        (dict(type="Rotate", fill_mask=0), "Rotate: fill_mask is 0, .* always unlabelled"),
        (dict(type="Rotate", mask_interpolation=1), "mask_interpolation is 1; allowed"),
        (dict(type="OneOf", transforms=[dict(type="Nope")]), "'Nope' is no transform"),
    ],
)
def test_wrong_steps_are_named(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlbumentationsSteps([step])


def test_what_the_model_does_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="float32 afterwards, not uint8"):
        AlbumentationsSteps([dict(type="Normalize", p=1.0)])(sample())


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match="pip install 'albumentations>=2,<3'"):
        AlbumentationsSteps([])
