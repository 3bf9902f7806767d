"""mIoU and its relatives from exact integer counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS
from numpy.typing import NDArray
from PIL import Image
from prettytable import PrettyTable
from torch import Tensor

from mmseg_eomt.evaluation.confusion import (
    IOU_METRICS,
    Scores,
    class_scores,
    count_boundary,
    count_confusion,
)
from mmseg_eomt.evaluation.report import gather_rows, image_row, write_report


@METRICS.register_module()
class SegmentationMetric(BaseMetric):  # type: ignore[misc]
    """``aAcc``, ``mIoU`` and ``mAcc`` in percent, with a table of the classes in the log.

    Names, definitions and options are those of mmseg's ``IoUMetric``. The counts are int64, kept
    on the device of the predictions and summed over processes as integers; results are not
    rounded. Samples that mmengine's sampler repeats at the end, so that all processes get
    equally many, count once.

    Args:
        ignore_index (int): Label of pixels that do not count. Defaults to 255.
        iou_metrics (Sequence[str]): Of ``'mIoU'``, ``'mDice'``, ``'mFscore'``. Defaults to
            ('mIoU',).
        nan_to_num (float, optional): Stands for the score of a class that never appears.
            Defaults to None: it is left out of the mean.
        beta (float): Weight of recall in Fscore. Defaults to 1.
        output_dir (str, optional): Write each prediction there as PNG, with the user's class
            ids, in the folders of the images. Defaults to None.
        format_only (bool): Only write, for images without labels. Defaults to False.
        prefix (str, optional): Prefix of the names. Defaults to None.
        boundary (float, optional): Also boundary IoU (``mBoundaryIoU``), of bands along outlines
            that are so wide as a share of the image's diagonal; 0.02 is usual. Defaults to None.
        report_dir (str, optional): Write ``classes.csv``, ``confusion.csv``, ``confusion.png`` and
            ``images.csv`` (worst image first) there. Defaults to None.

    Raises:
        ValueError: If an option is not as above.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        iou_metrics: Sequence[str] = ("mIoU",),
        nan_to_num: float | None = None,
        beta: float = 1.0,
        output_dir: str | None = None,
        format_only: bool = False,
        prefix: str | None = None,
        *,
        boundary: float | None = None,
        report_dir: str | None = None,
    ) -> None:
        # The base class warns of a missing prefix, which is how mmseg's own metric is used.
        super().__init__(prefix=prefix or "unset")
        self.prefix = prefix
        unknown = sorted(set(iou_metrics) - set(IOU_METRICS))
        if unknown or isinstance(iou_metrics, str):
            raise ValueError(
                f"SegmentationMetric: iou_metrics is {iou_metrics!r}; allowed is a list of "
                f"{', '.join(IOU_METRICS)}."
            )
        if format_only and output_dir is None:
            raise ValueError("SegmentationMetric: format_only needs output_dir to write to.")
        if boundary is not None and not 0 < boundary < 1:
            raise ValueError(
                f"SegmentationMetric: boundary is {boundary}; allowed is a share of the image's "
                "diagonal between 0 and 1, such as 0.02, or None."
            )
        self.boundary = boundary
        self.report_dir = report_dir
        self.ignore_index = ignore_index
        self.iou_metrics = list(iou_metrics)
        self.nan_to_num = nan_to_num
        self.beta = beta
        self.output_dir = output_dir
        self.format_only = format_only
        self._reset()

    def _reset(self) -> None:
        self._sum: Tensor | None = None
        self._last: Tensor | None = None
        self._count = 0
        self._written: dict[Path, str] = {}
        self._images: list[list[Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts (and writes) the predictions of a batch."""
        meta = self._meta()
        for sample in data_samples:
            prediction = sample["pred_sem_seg"]["data"].squeeze(0)
            path = sample.get("img_path") or "image without a path"
            if not self.format_only:
                if "gt_sem_seg" not in sample:
                    raise ValueError(
                        f"{path}: there is no label map to compare with. Add the masks and "
                        "LoadAnnotations to the pipeline, or set format_only=True."
                    )
                counts = self._counts(
                    prediction, sample["gt_sem_seg"]["data"].squeeze(0), path, meta["classes"]
                )
                # The last sample stays apart until evaluate(), when it is known whether it is
                # one of those repeated to give all processes equally many.
                if self._last is not None:
                    self._sum = self._last if self._sum is None else self._sum + self._last
                self._last = counts
            if self.output_dir is not None:
                self._write(prediction, sample, path, meta)
            self._count += 1

    def evaluate(self, size: int) -> dict[str, float]:
        """Sums over processes and computes the scores.

        Args:
            size (int): Number of samples in the dataset, without repeated ones.

        Returns:
            dict[str, float]: ``aAcc``, ``mIoU``, ``mAcc``, ... in percent, on every process.

        Raises:
            ValueError: If no labelled pixel was seen.
        """
        if self.format_only:
            print_log(f"Predictions are in {self.output_dir}", logger="current")
            self._reset()
            return {}
        rank, world_size = get_dist_info()
        num_classes = len(self._meta()["classes"])
        total, images = self._sum, self._images
        # Process r's i-th sample is number i * world_size + r of the dataset, so the repeated
        # ones are those beyond its end: never more than the last of a process.
        if self._last is not None and (self._count - 1) * world_size + rank < size:
            total = self._last if total is None else total + self._last
        else:
            images = images[:-1]
        if total is None:
            total = torch.zeros(self._rows(num_classes), num_classes, dtype=torch.int64)
        total = total.clone()
        all_reduce(total)  # sum
        counts = total.cpu().numpy()
        self._reset()
        metrics = self.compute_metrics(counts)
        if self.report_dir is not None:
            images = gather_rows(images, device=total.device)
            if rank == 0:
                self._report(counts, images)
        return {f"{self.prefix}/{k}" if self.prefix else k: v for k, v in metrics.items()}

    def compute_metrics(self, results: NDArray[np.int64]) -> dict[str, float]:
        """Scores of summed counts, and the table of classes in the log.

        Args:
            results (ndarray): ``int64 [K, K]``, rows are true classes; with boundary IoU three
                more rows, ``count_boundary``'s.

        Returns:
            dict[str, float]: Scores in percent.
        """
        confusion, more = self._split(results)
        if not confusion.any():
            raise ValueError(
                "SegmentationMetric: not a single labelled pixel was evaluated. Check that the "
                f"validation masks hold values other than the ignored {self.ignore_index}."
            )
        scores = class_scores(confusion, self.iou_metrics, self.beta)
        scores.update(more)
        if self.nan_to_num is not None:
            scores = {key: np.nan_to_num(v, nan=self.nan_to_num) for key, v in scores.items()}
        summary = {"aAcc": float(scores.pop("aAcc")) * 100}
        summary.update({f"m{key}": float(np.nanmean(v)) * 100 for key, v in scores.items()})
        table = PrettyTable()
        table.add_column("Class", list(self._meta()["classes"]))
        for key, values in scores.items():
            table.add_column(key, [f"{value * 100:.2f}" for value in values])
        print_log("per class results:\n" + table.get_string(), logger="current")
        return summary

    def _counts(
        self, prediction: Tensor, label: Tensor, path: str, classes: Sequence[str]
    ) -> Tensor:
        """All counts of an image; remembers its scores for a report."""
        options = {"num_classes": len(classes), "ignore_index": self.ignore_index}
        counts = count_confusion(prediction, label, **options, path=path)
        if self.report_dir is not None:
            self._images.append(image_row(counts, path, classes))
        if self.boundary is None:
            return counts
        band = count_boundary(prediction, label, **options, share=self.boundary)
        return torch.cat([counts, band])

    def _rows(self, num_classes: int) -> int:
        return num_classes + (0 if self.boundary is None else 3)

    def _split(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], Scores]:
        """The confusion matrix, and the scores that come from the other rows."""
        num_classes = counts.shape[1]
        if self.boundary is None:
            return counts, {}
        label, prediction, both = counts[num_classes:]
        with np.errstate(invalid="ignore"):
            return counts[:num_classes], {"BoundaryIoU": both / (label + prediction - both)}

    def _report(self, counts: NDArray[np.int64], images: Sequence[Sequence[Any]]) -> None:
        confusion, more = self._split(counts)
        classes = self._meta()["classes"]
        write_report(Path(str(self.report_dir)), confusion, images, classes=classes, more=more)
        print_log(f"Scores of classes and images are in {self.report_dir}", logger="current")

    def _meta(self) -> dict[str, Any]:
        if self.dataset_meta is None or "classes" not in self.dataset_meta:
            raise ValueError(
                "SegmentationMetric: dataset_meta has no classes; set metric.dataset_meta = "
                "dataset.metainfo (mmengine's loops do)."
            )
        return dict(self.dataset_meta)

    def _write(
        self, prediction: Tensor, sample: dict[str, Any], path: str, meta: dict[str, Any]
    ) -> None:
        labels = prediction.cpu().numpy()
        ids = meta.get("class_ids")
        if ids is not None:
            labels = np.asarray(ids)[labels]
        elif sample.get("reduce_zero_label", False):
            labels = labels + 1  # mmseg took 1 away when it loaded the labels
        target = Path(str(self.output_dir)) / _relative_stem(path, meta.get("image_roots", ()))
        target = target.with_name(target.name + ".png")
        if self._written.setdefault(target, path) != path:
            raise ValueError(
                f"{target}: the predictions of {self._written[target]} and {path} would both be "
                "written there. Rename one of the images."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        wide = max(ids, default=0) > 255 if ids is not None else False
        Image.fromarray(labels.astype(np.uint16 if wide else np.uint8)).save(target)


def _relative_stem(path: str, roots: Sequence[str]) -> str:
    """Path of an image without suffix, below the image folder it lies in."""
    for root in roots:
        if os.path.abspath(path).startswith(os.path.abspath(root) + os.sep):
            return os.path.splitext(os.path.relpath(path, root))[0]
    return os.path.splitext(os.path.basename(path))[0]
