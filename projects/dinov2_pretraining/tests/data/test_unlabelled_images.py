"""Batches depend on the files, the seed and the place in the run; bad files are passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data.pictures import write_pictures
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from dinov2_pretraining.data import UnlabelledImages, collate_views
from mmseg_eomt.datasets.skipping import TooManyBadFilesError, files_in_flight
from mmseg_eomt.errors import BadFileError

VIEWS = {"type": "MultiCropViews", "global_size": 28, "local_size": 14, "num_local": 3}
PIPELINE = [{"type": "SeedSample"}, VIEWS]


@pytest.fixture(autouse=True)
def scope() -> Any:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def loader(folder: Path, *, workers: int = 0, batch: int = 3, seed: int = 7, **dataset: Any) -> Any:
    return Runner.build_dataloader(
        {
            "batch_size": batch,
            "num_workers": workers,
            "sampler": {"type": "StepSampler", "seed": seed},
            "collate_fn": {"type": "collate_views", "patch_size": 14},
            "dataset": {
                "type": "UnlabelledImages",
                "data": str(folder),
                "pipeline": PIPELINE,
                **dataset,
            },
        }
    )


def batches(source: Any, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    source.sampler.set_start(start)
    iterator = iter(source)
    return [next(iterator) for _ in range(count)]


def assert_equal(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["data_samples"] == other["data_samples"]
        for key, value in one["inputs"].items():
            assert torch.equal(value, other["inputs"][key]), key


def test_a_batch_is_what_the_method_takes(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 5)
    (batch,) = batches(loader(tmp_path), 1)
    inputs = batch["inputs"]
    assert set(inputs) == {"global_views", "local_views", "masks"}
    assert inputs["global_views"].shape == (6, 3, 28, 28)
    assert inputs["local_views"].shape == (9, 3, 14, 14)
    assert inputs["masks"].shape == (6, 4) and inputs["masks"].dtype == torch.bool
    assert all(inputs[key].dtype == torch.uint8 for key in ("global_views", "local_views"))
    assert (inputs["masks"].sum(dim=1) > 0).sum() == 3
    assert {sample["path"] for sample in batch["data_samples"]} <= {str(path) for path in paths}


def test_views_of_a_kind_lie_together(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    dataset = UnlabelledImages(tmp_path, pipeline=PIPELINE)
    samples = [dataset[0], dataset[1]]
    inputs = collate_views(samples)["inputs"]
    for key in ("global_views", "local_views"):
        views = samples[0][key].shape[0]
        for view in range(views):
            for image in range(2):
                assert torch.equal(inputs[key][view * 2 + image], samples[image][key][view])


def test_batches_do_not_depend_on_workers_and_go_on_exactly(tmp_path: Path) -> None:
    write_pictures(tmp_path, 7)
    whole = batches(loader(tmp_path), 6)
    assert_equal(whole, batches(loader(tmp_path, workers=2), 6))
    assert_equal(whole[4:], batches(loader(tmp_path, workers=1), 2, start=12))
    # Neither pictures nor masks repeat, and another seed gives others.
    assert not torch.equal(whole[0]["inputs"]["masks"], whole[1]["inputs"]["masks"])
    other = batches(loader(tmp_path, seed=8), 1)[0]["inputs"]
    assert not torch.equal(whole[0]["inputs"]["masks"], other["masks"])
    assert not torch.equal(whole[0]["inputs"]["global_views"], other["global_views"])


def test_the_next_readable_file_stands_in_and_the_rest_stays(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 6)
    healthy = batches(loader(tmp_path, batch=2), 6)
    paths[2].write_bytes(b"no picture")
    source = loader(tmp_path, batch=2, max_skipped=0.2)
    first = batches(source, 6)
    for before, after in zip(healthy, first, strict=True):
        for place, sample in enumerate(before["data_samples"]):
            bad = sample["path"] == str(paths[2])
            assert after["data_samples"][place]["path"] == (
                str(paths[3]) if bad else sample["path"]
            )
            views = [batch["inputs"]["global_views"][place] for batch in (before, after)]
            assert torch.equal(*views) != bad
        # The place in the run decides about masks, not the file.
        assert torch.equal(before["inputs"]["masks"], after["inputs"]["masks"])
    assert_equal(first[3:], batches(loader(tmp_path, batch=2, workers=2), 3, start=6))
    assert source.dataset.skipped.indices() == [2]


def test_too_many_bad_files_end_the_run_and_name_one(tmp_path: Path) -> None:
    for path in write_pictures(tmp_path, 4)[:2]:
        path.write_bytes(b"no picture")
    with pytest.raises(TooManyBadFilesError, match=r"2 of 4 .* passes over 1 .*00[01]\.png"):
        batches(loader(tmp_path), 3)


def test_on_error_raise_names_the_first_bad_file(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)[0].write_bytes(b"")
    with pytest.raises(BadFileError, match=r"000\.png: the file is empty"):
        batches(loader(tmp_path, on_error="raise"), 1)


def test_a_step_that_fails_names_the_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)

    def fail(sample: dict[str, Any]) -> None:
        raise KeyError("x")

    dataset = UnlabelledImages(tmp_path, pipeline=[fail])
    with pytest.raises(RuntimeError, match=r"000\.png: the pipeline failed .* KeyError"):
        dataset[0]
    assert files_in_flight(dataset) == []


def test_views_that_are_no_whole_patches_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    sample = UnlabelledImages(tmp_path, pipeline=PIPELINE)[0]
    with pytest.raises(ValueError, match=r"global_size is 28.*16 pixels.*Set it to 32"):
        collate_views([sample], patch_size=16)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"max_skipped": 0.0}, "max_skipped is 0.0"),
        ({"data": None}, "data is not set"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    write_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        UnlabelledImages(**{"data": tmp_path, "pipeline": [], **wrong})
