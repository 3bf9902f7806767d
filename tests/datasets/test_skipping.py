"""Bad files during training: named by default, or passed over by a fixed rule and counted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmcv.transforms import BaseTransform
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader

from mmseg_eomt.apis.processes import naming_files
from mmseg_eomt.datasets import FolderSegDataset, StepSampler
from mmseg_eomt.datasets.skipping import TooManyBadFilesError, files_in_flight
from mmseg_eomt.errors import BadFileError
from tests.datasets.conftest import write_pair

Describe = Callable[..., dict[str, Any]]
STEPS = [
    {"type": "SeedSample"},
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "ScaleJitterCrop", "size": 8},
    {"type": "PackSegInputs"},
]


@TRANSFORMS.register_module()
class FailsOnB(BaseTransform):
    """Fails, or kills its process, at the image b."""

    def __init__(self, *, kill: bool = False) -> None:
        self.kill = kill

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if Path(results["img_path"]).stem == "b":
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a fault of the program")
        return results


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


@pytest.fixture
def ten(folder: Path, describe: Describe) -> Callable[..., FolderSegDataset]:
    """Ten training samples n0..n9, of which some are broken behind their headers."""
    for stem in ("a", "b", "deep/c"):
        (folder / f"train/images/{stem}.jpg").unlink()
        (folder / f"train/masks/{stem}.png").unlink()
    for number in range(10):
        write_pair(folder, "train", f"n{number}", size=(12 + number, 9))

    def make(*broken: int, split: str = "train", **changes: Any) -> FolderSegDataset:
        for number in broken:
            path = folder / f"train/images/n{number}.jpg"
            path.write_bytes(path.read_bytes()[:-40])
        data = describe(**changes)
        data["val"] = data["train"]
        return FolderSegDataset(data, split=split, pipeline=STEPS, num_checked_masks=0)

    return make


def names(dataset: FolderSegDataset, count: int, *, workers: int = 0, start: int = 0) -> list[Any]:
    """Name and sum of the crop of the samples that training would see."""
    sampler = StepSampler(dataset, seed=3)
    sampler.set_start(start)
    loader = DataLoader(
        dataset, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=lambda x: x
    )
    seen = []
    for _, sample in zip(range(count), loader, strict=False):
        stem = Path(sample["data_samples"].img_path).stem
        seen.append((stem, int(sample["inputs"].long().sum())))
    return seen


def test_bad_file_ends_training_by_name(ten: Callable[..., FolderSegDataset]) -> None:
    with pytest.raises(BadFileError, match=r"n4\.jpg: unreadable image"):
        names(ten(4), 10)
    with pytest.raises(ValueError, match=r"n4\.jpg: unreadable image"):
        names(ten(), 10, workers=1)


def test_skipped_sample_is_replaced_by_the_next_readable_one(
    ten: Callable[..., FolderSegDataset],
) -> None:
    whole = names(ten(), 20)
    dataset = ten(4, 5, 9, on_error="skip", max_skipped=0.3)
    with_gaps = names(dataset, 20)
    replaced = {"n4": "n6", "n5": "n6", "n9": "n0"}
    assert [stem for stem, _ in with_gaps] == [replaced.get(stem, stem) for stem, _ in whole]
    # The others are not touched by it, augmentation included.
    assert all(a == b for a, b in zip(whole, with_gaps, strict=True) if a[0] not in replaced)
    assert dataset.skipped is not None and dataset.skipped.count == 3


def test_skipping_is_exact_over_workers_and_resumes(ten: Callable[..., FolderSegDataset]) -> None:
    dataset = ten(0, 4, on_error="skip", max_skipped=0.2)
    straight = names(dataset, 24)
    assert names(dataset, 24, workers=2) == straight
    assert names(dataset, 11, start=13) == straight[13:]


def test_counts_are_shared_by_workers_and_capped(ten: Callable[..., FolderSegDataset]) -> None:
    dataset = ten(0, 4, 7, on_error="skip", max_skipped=0.2)
    with pytest.raises(RuntimeError, match=r"3 of 10 samples in data: train are bad, .* over 2 "):
        names(dataset, 30, workers=2)


def test_one_bad_file_is_passed_over_in_a_small_set(ten: Callable[..., FolderSegDataset]) -> None:
    dataset = ten(3, on_error="skip")
    assert len(names(dataset, 20)) == 20
    with pytest.raises(TooManyBadFilesError, match=r"2 of 10 .* \(max_skipped 0\.01\)"):
        names(ten(5, on_error="skip"), 20)


def test_each_bad_file_is_logged_once(
    ten: Callable[..., FolderSegDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(
        "mmseg_eomt.datasets.skipping.print_log", lambda text, **_: messages.append(text)
    )
    names(ten(3, on_error="skip"), 30)
    assert len(messages) == 1
    assert "skipped, 1 of 10 in data: train (at most 1): " in messages[0]
    assert "n3.jpg: unreadable image" in messages[0]


@pytest.mark.parametrize("fault", ["size", "value", "missing"])
def test_every_fault_of_a_file_can_be_skipped(
    folder: Path, ten: Callable[..., FolderSegDataset], fault: str
) -> None:
    dataset = ten(on_error="skip")
    mask = folder / "train/masks/n2.png"
    if fault == "size":
        Image.new("L", (5, 5)).save(mask)
    elif fault == "value":
        Image.new("L", (14, 9), 77).save(mask)
    else:
        mask.unlink()
    assert Path(dataset[2]["data_samples"].img_path).stem == "n3"


def test_replacement_counts_for_nothing_in_validation(
    ten: Callable[..., FolderSegDataset],
) -> None:
    dataset = ten(2, on_error="skip", split="val")
    assert bool((dataset[2]["data_samples"].gt_sem_seg.data == 255).all())
    assert bool((dataset[3]["data_samples"].gt_sem_seg.data != 255).any())


def test_bad_headers_are_skipped_at_construction(
    folder: Path, ten: Callable[..., FolderSegDataset]
) -> None:
    (folder / "train/images/n1.jpg").write_bytes(b"no image")
    dataset = ten(on_error="skip")
    assert len(dataset) == 10 and dataset.skipped is not None and dataset.skipped.count == 1
    (folder / "train/images/n2.jpg").write_bytes(b"")
    with pytest.raises(TooManyBadFilesError, match=r"2 of 10"):
        ten(on_error="skip")


def test_fault_of_the_program_names_the_image_and_is_never_skipped(
    folder: Path, describe: Describe
) -> None:
    pipeline = [*STEPS[:3], {"type": "FailsOnB"}, STEPS[-1]]
    dataset = FolderSegDataset(describe(on_error="skip"), pipeline=pipeline)
    with pytest.raises(RuntimeError, match=r"b\.jpg: the pipeline failed on this image: KeyError"):
        dataset[1]


def test_worker_that_dies_leaves_the_name_of_its_file(folder: Path, describe: Describe) -> None:
    pipeline = [*STEPS[:3], {"type": "FailsOnB", "kill": True}, STEPS[-1]]
    dataset = FolderSegDataset(describe(), pipeline=pipeline)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda x: x)
    runner = SimpleNamespace(_train_dataloader=loader)
    with (
        pytest.raises(RuntimeError, match=r"died while .* reading: .*b\.jpg\. Look at"),
        naming_files(runner),
    ):
        list(loader)
    wrapped = SimpleNamespace(datasets=[SimpleNamespace(dataset=dataset)])
    assert [Path(path).name for path in files_in_flight(wrapped)] == ["b.jpg"]


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match=r"^CUDA error$"), naming_files(SimpleNamespace()):
        raise RuntimeError("CUDA error")


def test_nothing_is_in_flight_when_all_is_well(ten: Callable[..., FolderSegDataset]) -> None:
    dataset = ten()
    names(dataset, 3)
    assert dataset.skipped is None and dataset.files_in_flight() == []
