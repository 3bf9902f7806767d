"""Rare classes come more often, and resume and world size stay exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATA_SAMPLERS
from PIL import Image

from mmseg_eomt.datasets import BalancedStepSampler, FolderSegDataset, SampleIndex
from mmseg_eomt.datasets.samplers import class_balanced_draws, class_presence, repeat_factors

PIPELINE = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
# Class 0 on all twenty images, 1 on two, 2 on one; the last has no label at all.
SHOWN: list[set[int]] = [{0}] * 17 + [{0, 1}, {0, 1, 2}, set()]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def write(root: Path, shown: list[set[int]]) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, classes in enumerate(shown):
        mask = np.full((6, 8), 255, np.uint8)
        for class_id in classes:
            mask[class_id, : 1 + class_id] = class_id
        Image.fromarray(mask).save(root / "masks" / f"{number:02}.png")
        Image.new("RGB", (8, 6)).save(root / "images" / f"{number:02}.jpg")


@pytest.fixture(name="dataset")
def _dataset(tmp_path: Path) -> FolderSegDataset:
    write(tmp_path, SHOWN)
    data = {
        "train": {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")},
        "classes": {0: "a", 1: "b", 2: "c", 9: "never"},
    }
    return FolderSegDataset(data, pipeline=PIPELINE)


def wanted(shown: list[set[int]], count: int) -> np.ndarray[Any, Any]:
    return np.array([[c in classes for c in range(count)] for classes in shown])


def take(sampler: BalancedStepSampler, count: int) -> list[SampleIndex]:
    return list(itertools.islice(sampler, count))


def test_presence_of_classes_is_read_from_the_masks(dataset: FolderSegDataset) -> None:
    assert np.array_equal(class_presence(dataset), wanted(SHOWN, 4))
    for other in (ConcatDataset([dataset, dataset]), RepeatDataset(dataset, 2)):
        assert np.array_equal(class_presence(other), wanted(SHOWN * 2, 4))


def test_presence_follows_the_label_map_of_mmsegs_datasets(tmp_path: Path) -> None:
    write(tmp_path, [{0, 1}, {2}])
    dataset = BaseSegDataset(
        data_prefix=dict(img_path=str(tmp_path / "images"), seg_map_path=str(tmp_path / "masks")),
        metainfo=dict(classes=("x", "y")),
        reduce_zero_label=True,  # masks hold 1 and 2 for them
        pipeline=PIPELINE,
    )
    assert np.array_equal(class_presence(dataset), [[True, False], [False, True]])


def test_repeat_factors_are_those_of_the_paper() -> None:
    shown = wanted(SHOWN, 4)
    factors = repeat_factors(shown, 0.4)
    assert np.allclose(factors[:17], 1)
    assert factors[17] == pytest.approx(2.0)  # sqrt(0.4 / (2 / 20))
    assert factors[18] == pytest.approx(8**0.5)  # sqrt(0.4 / (1 / 20))
    assert factors[19] == 1.0


def test_balanced_draws_give_each_class_the_same_share() -> None:
    draws = class_balanced_draws(wanted(SHOWN, 4))
    assert draws.sum() == pytest.approx(20)
    assert draws[19] == 0
    # A third by each class: 19 images, 2 images, 1 image.
    assert draws[18] == pytest.approx(20 / 3 * (1 / 19 + 1 / 2 + 1))
    assert draws[0] == pytest.approx(20 / 3 / 19)


@pytest.mark.parametrize("rule", ["repeat_factor", "class_balanced"])
def test_each_epoch_rounds_the_wishes_and_their_mean_is_exact(
    dataset: FolderSegDataset, rule: str
) -> None:
    sampler = BalancedStepSampler(dataset, rule=rule, threshold=0.4, seed=5)
    size, epochs = sampler.epoch_size, 400
    assert size == (23 if rule == "repeat_factor" else 20)
    indices = np.array(take(sampler, size * epochs)).reshape(epochs, size)
    counts = np.stack([np.bincount(epoch, minlength=20) for epoch in indices])
    assert (counts >= np.floor(sampler.draws)).all() and (counts <= np.ceil(sampler.draws)).all()
    assert np.abs(counts.mean(axis=0) - sampler.draws).max() < 4 * 0.5 / epochs**0.5
    assert len({tuple(epoch) for epoch in indices}) == epochs
    # Roundings of neighbours are independent of each other.
    part = sampler.draws % 1
    free = [i for i in range(17) if 0.05 < part[i] < 0.95]
    if free:
        pairs = np.corrcoef(counts[:, free].T) - np.eye(len(free))
        assert np.abs(pairs).max() < 0.3


def test_resume_and_world_size_are_exact(
    dataset: FolderSegDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take(BalancedStepSampler(dataset, threshold=0.4, seed=0), 120)
    assert [index.position for index in whole] == list(range(120))
    resumed = BalancedStepSampler(dataset, threshold=0.4, seed=0)
    resumed.set_start(53)
    rest = take(resumed, 67)
    assert rest == whole[53:]
    assert [index.position for index in rest] == list(range(53, 120))
    presence = class_presence(dataset)  # what all processes together find
    monkeypatch.setattr("mmseg_eomt.datasets.samplers.class_presence", lambda _: presence)
    ranks = []
    for rank in range(3):
        monkeypatch.setattr("mmseg_eomt.datasets.samplers.get_dist_info", lambda r=rank: (r, 3))
        ranks.append(take(BalancedStepSampler(dataset, threshold=0.4, seed=0), 40))
    assert [index for step in zip(*ranks, strict=True) for index in step] == whole
    assert take(BalancedStepSampler(dataset, threshold=0.4, seed=1), 120) != whole


def test_a_config_builds_it_as_mmengine_does(dataset: FolderSegDataset) -> None:
    config = dict(type="BalancedStepSampler", rule="class_balanced")
    sampler = DATA_SAMPLERS.build(config, default_args=dict(dataset=dataset, seed=3))
    assert sampler.seed == 3 and len(sampler) == 20
    assert 19 not in take(sampler, 200)


def test_wrong_options_and_masks_are_named(dataset: FolderSegDataset, tmp_path: Path) -> None:
    make: Callable[..., BalancedStepSampler] = BalancedStepSampler
    with pytest.raises(ValueError, match="rule is 'rare'; allowed are"):
        make(dataset, rule="rare")
    with pytest.raises(ValueError, match="threshold is 0; allowed are"):
        make(dataset, threshold=0)
    with pytest.raises(ValueError, match="names no classes"):
        make(range(4))
    with pytest.raises(ValueError, match="no mask has a labelled pixel"):
        class_balanced_draws(np.zeros((3, 2), bool))
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(tmp_path / "masks" / "07.png")
    with pytest.raises(ValueError, match=r"07\.png: .*77"):
        make(dataset)
    skipping = {**dataset.description.as_dict(), "on_error": "skip"}
    assert not class_presence(FolderSegDataset(skipping, pipeline=PIPELINE))[7].any()
    bare = FolderSegDataset(dataset.description, pipeline=[], num_checked_masks=0)
    with pytest.raises(ValueError, match="0 steps LoadAnnotations"):
        make(bare)
