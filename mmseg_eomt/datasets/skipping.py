"""What the folder datasets do about files that turn out bad while it is read.

``on_error: raise`` ends the run with the name of the file. ``on_error: skip`` passes over it:

* The place of a bad sample is taken by the next one of the file list that can be read (the first
  follows the last). That depends on the files alone, not on workers or processes; the augmentation
  is drawn for the place in the run as ever, so a resumed run goes on exactly.
* In validation and tests the replacement counts as unlabelled: no image counts twice.
* Each bad file is logged once and counted, over all workers of a process. Above the share
  ``max_skipped`` of the split (but at least one file) the run ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.datasets.samplers import SampleIndex
from mmseg_eomt.errors import BadFileError

_PLACES = 257  # the main process and up to 256 workers
_NOTHING = -1


class TooManyBadFilesError(RuntimeError):
    """More files of a split are bad than ``max_skipped`` allows."""


class SkippedFiles:
    """Counts bad files over the workers of a process.

    Args:
        total (int): Number of samples.
        max_share (float): The largest share that may be bad.
        name (str): The split, named in messages.
    """

    def __init__(self, total: int, *, max_share: float, name: str) -> None:
        self.total = total
        self.max_share = max_share
        self.name = name
        # Shared with the workers, whether they are forked or spawned.
        self._bad = torch.zeros(total, dtype=torch.uint8)
        self._bad.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def limit(self) -> int:
        """The most files that may be bad."""
        return max(1, int(self.max_share * self.total))

    @property
    def count(self) -> int:
        """How many samples have been found bad."""
        return int(self._bad.sum())

    def indices(self) -> list[int]:
        """The samples that have been found bad."""
        return [int(index) for index in self._bad.nonzero()]

    def add(self, index: int, error: Exception) -> None:
        """Counts and logs a bad sample once.

        Raises:
            TooManyBadFilesError: If it is one too many.
        """
        if not self._bad[index]:
            self._bad[index] = 1
            print_log(
                f"skipped, {self.count} of {self.total} in {self.name} (at most {self.limit}): "
                f"{error}",
                logger="current",
                level=logging.WARNING,
            )
        self.check(self.count, error)

    def check(self, count: int, error: object) -> None:
        """Raises a `TooManyBadFilesError` if ``count`` is above the limit."""
        if count > self.limit:
            raise TooManyBadFilesError(
                f"{count} of {self.total} samples in {self.name} are bad, 'on_error: skip' passes "
                f"over {self.limit} (max_skipped {self.max_share:g}). Mend the files, which the "
                f"log names, or raise max_skipped. The last one: {error}"
            )


def run_pipeline(pipeline: Callable[[dict[str, Any]], Any], info: dict[str, Any]) -> Any:
    """The sample of ``info``; an error of the pipeline names the image.

    Raises:
        BadFileError, OSError: As they come, for they name the file.
        RuntimeError: For anything else.
    """
    path = info["img_path"]
    try:
        return pipeline(info)
    except (BadFileError, OSError):
        raise
    except Exception as error:
        raise RuntimeError(
            f"{path}: the pipeline failed on this image: {type(error).__name__}: {error}"
        ) from error


def read_past_bad(
    idx: int, *, read: Callable[[int], Any], skipped: SkippedFiles
) -> tuple[Any, bool]:
    """A sample, or the next one that can be read; bad ones are counted.

    Args:
        idx (int): The sample asked for.
        read (Callable): Reads the sample of an index. `BadFileError` and `OSError` mean bad.
        skipped (SkippedFiles): The count of this dataset.

    Returns:
        tuple: The sample, and whether it is another than the one asked for.

    Raises:
        TooManyBadFilesError: If more are bad than are allowed.
    """
    for further in range(skipped.total):
        index = _further(idx, further, skipped.total)
        try:
            return read(index), further > 0
        except (BadFileError, OSError) as error:
            skipped.add(int(index), error)
    raise BadFileError(f"{skipped.name}: no sample can be read.")


def _further(idx: int, count: int, total: int) -> int:
    if count == 0:
        return idx
    index = (int(idx) + count) % total
    # The place in the run stays, and with it the augmentation.
    return SampleIndex(index, idx.position, idx.seed) if type(idx) is SampleIndex else index


class FilesInFlight:
    """Which sample each worker is reading, so that a worker's death can name the file."""

    def __init__(self) -> None:
        self._indices = torch.full((_PLACES,), _NOTHING, dtype=torch.int64)
        self._indices.share_memory_()  # type: ignore[no-untyped-call]

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Marks a sample as being read; the mark stays if the process dies."""
        worker = get_worker_info()
        place = 0 if worker is None else 1 + worker.id % (_PLACES - 1)
        self._indices[place] = int(index)
        try:
            yield
        finally:
            self._indices[place] = _NOTHING

    def indices(self) -> list[int]:
        """The samples that are being read, or were when their worker died."""
        return sorted({int(index) for index in self._indices if index != _NOTHING})


def files_in_flight(dataset: Any) -> list[str]:
    """Images that the workers of a dataset are reading, wrappers around it looked through."""
    own = getattr(dataset, "files_in_flight", None)
    if own is not None:
        return list(own())
    inner = [*(getattr(dataset, "datasets", None) or ()), getattr(dataset, "dataset", None)]
    return [path for part in inner if part is not None for path in files_in_flight(part)]


def without_labels(sample: Any) -> Any:
    """Marks all pixels of a sample, packed or not, one or several views, as unlabelled."""
    if isinstance(sample, dict):
        if sample.get("gt_seg_map") is not None:
            sample["gt_seg_map"][...] = IGNORED
        views = sample.get("data_samples") or ()
        for view in views if isinstance(views, (list, tuple)) else [views]:
            if "gt_sem_seg" in view:
                view.gt_sem_seg.data.fill_(IGNORED)
    return sample
