"""Order and augmentation depend on the seed and the place in the run, and on nothing else."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset
from torch.utils.data import DataLoader

from mmseg_eomt.datasets import FolderSegDataset, SampleIndex, StepSampler
from mmseg_eomt.datasets.transforms import SeedSample

Describe = Callable[..., dict[str, Any]]
PIPELINE = [
    {"type": "SeedSample"},
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "EoMTColorJitter"},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "ScaleJitterCrop", "size": (8, 8)},
    {"type": "PackSegInputs"},
]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def take(sampler: StepSampler, count: int) -> list[SampleIndex]:
    return list(itertools.islice(sampler, count))


def test_each_epoch_is_another_permutation_of_all_samples() -> None:
    indices = take(StepSampler(range(10), seed=3), 30)
    epochs = [indices[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [index.position for index in indices] == list(range(30))
    assert indices != take(StepSampler(range(10), seed=4), 30)


def test_order_never_changes_between_versions() -> None:
    assert take(StepSampler(range(8), seed=0), 10) == [6, 3, 5, 0, 7, 2, 1, 4, 3, 1]


def test_without_shuffling_the_order_is_kept() -> None:
    assert take(StepSampler(range(3), seed=0, shuffle=False), 5) == [0, 1, 2, 0, 1]


def test_global_batch_holds_the_same_samples_on_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = take(StepSampler(range(7), seed=0), 24)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr("mmseg_eomt.datasets.samplers.get_dist_info", lambda r=rank: (r, 2))
        ranks.append(take(StepSampler(range(7), seed=0), 12))
    shared = [index for pair in zip(*ranks, strict=True) for index in pair]
    assert shared == alone
    assert [index.position for index in shared] == [index.position for index in alone]


def test_set_start_continues_where_a_run_stopped() -> None:
    whole = take(StepSampler(range(7), seed=0), 30)
    resumed = StepSampler(range(7), seed=0)
    resumed.set_start(17)
    rest = take(resumed, 13)
    assert rest == whole[17:]
    assert [index.position for index in rest] == list(range(17, 30))


def test_wrong_start_and_empty_dataset_are_errors() -> None:
    with pytest.raises(ValueError, match="position is -1; allowed are 0 and more"):
        StepSampler(range(2), seed=0).set_start(-1)
    with pytest.raises(ValueError, match="the dataset is empty"):
        StepSampler([], seed=0)


def test_index_keeps_its_place_through_pickling_and_arithmetic() -> None:
    index = SampleIndex(9, 100, 5)
    for other, value in ((pickle.loads(pickle.dumps(index)), 9), (index - 4, 5), (index % 4, 1)):
        assert (int(other), other.position, other.seed) == (value, 100, 5)


def draw(index: Any) -> tuple[float, float]:
    SeedSample()({"sample_idx": index})
    return random.random(), float(np.random.random())


def test_draws_follow_seed_and_position_only() -> None:
    first = draw(SampleIndex(3, 10, 0))
    assert draw(SampleIndex(4, 10, 0)) == first
    assert draw(SampleIndex(3, 11, 0)) != first
    assert draw(SampleIndex(3, 10, 1)) != first


def test_plain_index_leaves_the_generators_alone() -> None:
    assert draw(3) != draw(3)


@pytest.mark.parametrize("wrap", ["none", "repeat", "concat"])
def test_batches_do_not_depend_on_workers_or_on_the_start(describe: Describe, wrap: str) -> None:
    dataset: Any = FolderSegDataset(describe(), pipeline=PIPELINE)
    if wrap == "repeat":
        dataset = RepeatDataset(dataset, times=2)
    if wrap == "concat":
        dataset = ConcatDataset([dataset, FolderSegDataset(describe(), pipeline=PIPELINE)])

    def batches(workers: int, start: int, count: int) -> list[np.ndarray]:
        sampler = StepSampler(dataset, seed=1)
        sampler.set_start(start)
        loader = DataLoader(
            dataset, 2, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
        )
        batches = itertools.islice(loader, count)
        return [np.stack([image.numpy() for image in batch["inputs"]]) for batch in batches]

    alone = batches(0, 0, 4)
    for workers in (1, 3):
        assert np.array_equal(batches(workers, 0, 4), alone)
    assert np.array_equal(batches(0, 4, 2), alone[2:])
    assert np.array_equal(batches(3, 4, 2), alone[2:])
    # An epoch later the same images look different.
    assert not np.array_equal(alone[0], alone[3])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_processes_together_read_what_one_would(
    describe: Describe, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    dataset: Any = FolderSegDataset(describe(), pipeline=PIPELINE)

    def images(rank: int, world: int, count: int) -> list[np.ndarray]:
        place = "mmseg_eomt.datasets.samplers.get_dist_info"
        monkeypatch.setattr(place, lambda: (rank, world))
        sampler = StepSampler(dataset, seed=1)
        loader = DataLoader(
            dataset, 1, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
        )
        return [batch["inputs"][0].numpy() for batch in itertools.islice(loader, count)]

    alone = images(0, 1, 8)
    ranks = [images(rank, 2, 4) for rank in range(2)]
    assert np.array_equal([image for pair in zip(*ranks, strict=True) for image in pair], alone)


def test_augmentation_of_mmseg_datasets_is_seeded_too(folder: Any) -> None:
    dataset = ADE20KDataset(
        data_prefix={
            "img_path": str(folder / "train/images"),
            "seg_map_path": str(folder / "train/masks"),
        },
        pipeline=PIPELINE,
    )
    first, again, later = (dataset[SampleIndex(0, position, 0)]["inputs"] for position in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)
