"""Which classes each sample of a dataset shows, for samplers that balance them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.dist import all_gather_object, get_dist_info
from numpy.typing import NDArray

from mmseg_eomt.datasets.label_table import IGNORED
from mmseg_eomt.errors import BadFileError

Presence = NDArray[np.bool_]  # [samples, classes]

_THREADS = 4  # decoding happens outside Python's lock


def class_presence(dataset: Any) -> Presence:
    """Reads all masks of a dataset, each process its share.

    Masks are read by the dataset's own step (`LoadAnnotations` or `LoadFolderAnnotations` in its
    pipeline), so that label maps and ignored classes are those of training.

    Args:
        dataset: A dataset of mmseg or `FolderSegDataset`, or mmengine's ConcatDataset or
            RepeatDataset of such.

    Returns:
        ndarray: ``bool [samples, classes]``; a class is present with one pixel or more. A bad
        file shows none if the dataset skips such files.

    Raises:
        ValueError: If the dataset names no classes, reads no masks, or a mask is wrong.
    """
    if isinstance(dataset, ConcatDataset):
        parts = [class_presence(part) for part in dataset.datasets]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(
                f"the parts of the dataset have {[part.shape[1] for part in parts]} classes; "
                "balancing needs the same classes in all."
            )
        return np.concatenate(parts)
    if isinstance(dataset, RepeatDataset):
        return np.tile(class_presence(dataset.dataset), (dataset.times, 1))
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes:
        raise ValueError(
            f"{type(dataset).__name__} names no classes in its metainfo, so they cannot be "
            "balanced. Use StepSampler."
        )
    read = _mask_reader(dataset)
    count, size = len(classes), len(dataset)
    rank, world = get_dist_info()
    skips = getattr(getattr(dataset, "description", None), "on_error", "raise") == "skip"

    def look(index: int) -> Presence:
        present = np.zeros(count, dtype=np.bool_)
        try:
            labels = read(index)
        except (BadFileError, OSError):
            if not skips:
                raise
            return present  # training passes over the file, and counts it
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=count))
        values = values[values != IGNORED]
        if len(values) and values[-1] >= count:
            info = dataset.get_data_info(index)
            raise ValueError(
                f"{info.get('seg_map_path')}: holds the label {values[-1]}; allowed are 0 to "
                f"{count - 1} and {IGNORED}. Correct the mask or the classes."
            )
        present[values] = True
        return present

    fault = ""
    mine: list[Presence] = []
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            mine = list(pool.map(look, range(rank, size, world)))
    except (ValueError, OSError) as error:
        fault = str(error)
    # Faults travel as well: the others would wait for a process that has given up.
    shares = all_gather_object((mine, fault))
    for _, found in shares:
        if found:
            raise ValueError(found)
    result = np.zeros((size, count), dtype=np.bool_)
    for other, (rows, _) in enumerate(shares):
        if rows:
            result[other::world] = rows
    return result


def _mask_reader(dataset: Any) -> Callable[[int], NDArray[Any]]:
    """A function that gives a sample's labels ``[H, W]``, and reads nothing else."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    loaders = [s for s in steps if type(s).__name__ in ("LoadAnnotations", "LoadFolderAnnotations")]
    if len(loaders) != 1 or not hasattr(dataset, "get_data_info"):
        raise ValueError(
            f"{type(dataset).__name__}: its pipeline has {len(loaders)} steps LoadAnnotations; "
            "balancing classes needs one, to read the masks."
        )
    loader = loaders[0]

    def read(index: int) -> NDArray[Any]:
        labels: NDArray[Any] = loader.transform(dataset.get_data_info(index))["gt_seg_map"]
        return labels

    return read
