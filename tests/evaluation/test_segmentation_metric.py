"""Counts are exact, scores are mmseg's, and nothing impossible is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from PIL import Image

from mmseg_eomt.evaluation import SegmentationMetric
from mmseg_eomt.evaluation.confusion import count_confusion

CLASSES = ["a", "b", "c", "never"]


def samples(count: int, *, seed: int = 0, size: tuple[int, int] = (13, 17)) -> list[dict[str, Any]]:
    """Predictions and labels of the first three classes, some pixels ignored."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        label = rng.choice([0, 1, 2, 255], size)
        prediction = np.where(rng.random(size) < 0.6, label % 255, rng.integers(0, 3, size))
        made.append(
            {
                "pred_sem_seg": {"data": torch.from_numpy(prediction)[None]},
                "gt_sem_seg": {"data": torch.from_numpy(label)[None]},
                "img_path": f"images/{index}.jpg",
            }
        )
    return made


def evaluate(metric: Any, data: list[dict[str, Any]], size: int | None = None) -> dict[str, float]:
    metric.dataset_meta = {"classes": CLASSES}
    for start in range(0, len(data), 2):
        metric.process({}, data[start : start + 2])
    scores: dict[str, float] = metric.evaluate(len(data) if size is None else size)
    return scores


def reference(data: list[dict[str, Any]]) -> dict[str, float]:
    """mIoU, mAcc and aAcc by their definitions, one class at a time."""
    label = torch.stack([s["gt_sem_seg"]["data"] for s in data]).numpy()
    prediction = torch.stack([s["pred_sem_seg"]["data"] for s in data]).numpy()
    valid = label != 255
    iou, acc = [], []
    for k in range(3):  # the fourth never appears and is left out
        truth, found = (label == k) & valid, (prediction == k) & valid
        iou.append((truth & found).sum() / (truth | found).sum())
        acc.append((truth & found).sum() / truth.sum())
    return {
        "aAcc": 100 * (label == prediction)[valid].mean(),
        "mIoU": 100 * np.mean(iou),
        "mAcc": 100 * np.mean(acc),
    }


def test_scores_follow_their_definitions() -> None:
    data = samples(5)
    scores = evaluate(METRICS.build({"type": "SegmentationMetric"}), data)
    assert scores == pytest.approx(reference(data), abs=1e-9)


@pytest.mark.parametrize("nan_to_num", [None, 0])
def test_scores_equal_mmseg(nan_to_num: int | None) -> None:
    options: dict[str, Any] = {
        "iou_metrics": ["mIoU", "mDice", "mFscore"],
        "nan_to_num": nan_to_num,
        "beta": 2,
    }
    ours = evaluate(SegmentationMetric(**options), samples(6))
    theirs = evaluate(IoUMetric(**options), samples(6))
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=0.005001)  # theirs are rounded to two decimals


def test_one_pixel_counts_beyond_two_to_the_24() -> None:
    """float32 counters stop at 16,777,216."""
    metric = SegmentationMetric()
    metric.dataset_meta = {"classes": ["a", "b"]}
    whole = torch.zeros(1, 4096, 4096, dtype=torch.uint8)
    one = torch.zeros(1, 1, 1, dtype=torch.uint8)
    for label, prediction in ((whole, whole), (one, one + 1)):
        metric.process({}, [{"pred_sem_seg": {"data": prediction}, "gt_sem_seg": {"data": label}}])
    assert metric.evaluate(2)["aAcc"] == 100 * 2**24 / (2**24 + 1) != 100


def test_rows_are_true_classes() -> None:
    label, prediction = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 2, 1, 1]])
    counts = count_confusion(prediction, label, num_classes=3, ignore_index=255, path="x")
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert counts.dtype == torch.int64


def test_second_evaluation_starts_from_nothing() -> None:
    metric = SegmentationMetric()
    evaluate(metric, samples(3, seed=1))
    assert evaluate(metric, samples(3)) == evaluate(SegmentationMetric(), samples(3))


def test_prefix_is_put_before_the_names() -> None:
    scores = evaluate(SegmentationMetric(prefix="val"), samples(1))
    assert set(scores) == {"val/aAcc", "val/mIoU", "val/mAcc"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("gt_sem_seg", 4, r"images/0\.jpg: label value \[4\] lies outside 0 to 3"),
        ("gt_sem_seg", -1, r"label value \[-1\]"),
        ("pred_sem_seg", 255, r"prediction value \[255\] lies outside 0 to 3"),
    ],
)
def test_impossible_value_is_an_error_naming_the_file(kind: str, value: int, message: str) -> None:
    data = samples(1)
    for key in ("gt_sem_seg", "pred_sem_seg"):
        data[0][key]["data"][0, 5, 5] = 0  # a pixel that counts
    data[0][kind]["data"][0, 5, 5] = value
    with pytest.raises(ValueError, match=message):
        evaluate(SegmentationMetric(), data)


def test_impossible_prediction_on_an_ignored_pixel_does_not_matter() -> None:
    data = samples(1)
    expected = evaluate(SegmentationMetric(), data)
    ignored = data[0]["gt_sem_seg"]["data"] == 255
    data[0]["pred_sem_seg"]["data"][ignored] = 77
    assert evaluate(SegmentationMetric(), data) == expected


def test_other_size_is_an_error_naming_the_file() -> None:
    data = samples(1)
    data[0]["pred_sem_seg"]["data"] = torch.zeros(1, 5, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"images/0\.jpg: the prediction is \(5, 5\)"):
        evaluate(SegmentationMetric(), data)


def test_missing_labels_are_an_error_naming_the_file() -> None:
    data = samples(1)
    del data[0]["gt_sem_seg"]
    with pytest.raises(ValueError, match=r"images/0\.jpg: there is no label map"):
        evaluate(SegmentationMetric(), data)


def test_set_without_a_labelled_pixel_is_an_error() -> None:
    data = samples(2)
    for sample in data:
        sample["gt_sem_seg"]["data"][:] = 255
    with pytest.raises(ValueError, match="not a single labelled pixel"):
        evaluate(SegmentationMetric(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_metrics": ["IoU"]}, r"iou_metrics is \['IoU'\]; allowed is a list of mIoU"),
        ({"iou_metrics": "mIoU"}, "iou_metrics is 'mIoU'"),
        ({"format_only": True}, "format_only needs output_dir"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationMetric(**options)


def write(tmp_path: Path, paths: list[str], meta: dict[str, Any], **extra: Any) -> None:
    metric = SegmentationMetric(output_dir=str(tmp_path / "out"), format_only=True)
    metric.dataset_meta = meta
    for path in paths:
        prediction = torch.tensor([[[0, 1, 2]]])
        metric.process({}, [{"pred_sem_seg": {"data": prediction}, "img_path": path, **extra}])
    assert metric.evaluate(len(paths)) == {}


@pytest.mark.parametrize(("ids", "mode"), [([3, 7, 250], np.uint8), ([3, 7, 40000], np.uint16)])
def test_written_masks_carry_the_users_ids(tmp_path: Path, ids: list[int], mode: Any) -> None:
    root = tmp_path / "images"
    meta = {"classes": ["a", "b", "c"], "class_ids": ids, "image_roots": [str(root)]}
    write(tmp_path, [str(root / "x.jpg"), str(root / "deep/x.jpg")], meta)
    for name in ("x.png", "deep/x.png"):
        mask = np.asarray(Image.open(tmp_path / "out" / name))
        assert mask.tolist() == [ids] and mask.dtype == mode


def test_written_masks_undo_reduce_zero_label(tmp_path: Path) -> None:
    write(tmp_path, ["x.jpg"], {"classes": ["a", "b", "c"]}, reduce_zero_label=True)
    assert np.asarray(Image.open(tmp_path / "out/x.png")).tolist() == [[1, 2, 3]]


def test_two_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.png: the predictions of a/x\.jpg and b/x\.jpg"):
        write(tmp_path, ["a/x.jpg", "b/x.jpg"], {"classes": ["a", "b", "c"]})


COUNTS = (1, 5, 6)  # fewer samples than processes, one repeated, none repeated


def evaluate_rank(rank: int, world: int, folder: str) -> None:
    """What one process of a distributed validation does, with mmengine's own sampler."""
    from mmengine.dataset import DefaultSampler

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    for count in COUNTS:
        data = samples(count)
        dealt = [data[index] for index in DefaultSampler(data, shuffle=False, seed=0)]
        scores = evaluate(SegmentationMetric(), dealt, size=count)
        Path(folder, f"{count}-{rank}.json").write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_repeated_samples_of_the_distributed_sampler_count_once(tmp_path: Path) -> None:
    mp.start_processes(evaluate_rank, (2, str(tmp_path)), nprocs=2, start_method="spawn")
    for count in COUNTS:
        alone = evaluate(SegmentationMetric(), samples(count))
        for rank in range(2):
            assert json.loads((tmp_path / f"{count}-{rank}.json").read_text()) == alone
