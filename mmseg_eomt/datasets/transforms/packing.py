"""Packing of samples for the model, label maps as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackByteInputs(PackSegInputs):  # type: ignore[misc]
    """mmseg's ``PackSegInputs``, but a label map of bytes stays one.

    mmseg widens it to int64, which is 2 MiB for a crop of 512, more than twice the image. It all
    passes through shared memory from the worker to the trainer, and on to the device. Loss and
    metric take any integers.

    Args:
        meta_keys (Sequence[str]): As mmseg's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs ``img`` and, if there, ``gt_seg_map`` ``[H, W]``.

        Returns:
            dict: ``inputs`` ``uint8 [C, H, W]`` and ``data_samples``, whose ``gt_sem_seg`` is
            ``[1, H, W]``: uint8 if ``gt_seg_map`` is, else int64.
        """
        labels = results.get("gt_seg_map")
        if labels is None or labels.dtype != np.uint8 or labels.ndim != 2:
            return dict(super().transform(results))
        rest = {key: value for key, value in results.items() if key != "gt_seg_map"}
        packed = dict(super().transform(rest))
        data = torch.from_numpy(np.ascontiguousarray(labels)[None])
        packed["data_samples"].gt_sem_seg = PixelData(data=data)
        return packed
