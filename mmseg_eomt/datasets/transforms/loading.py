"""First and last steps of a pipeline: seed, load, resize for testing, pack."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from mmseg_eomt.datasets.samplers import SampleIndex
from mmseg_eomt.errors import BadFileError
from mmseg_eomt.images.reading import read_image, read_mask
from mmseg_eomt.images.resampling import resize_to_cover


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):  # type: ignore[misc]
    """Seeds the global generators from the run's seed and the position.

    Python's and NumPy's always, torch's in the loader's workers.

    First in a training pipeline. With `StepSampler` the augmentation of a sample then does not
    depend on the number of workers or processes, and a resumed run draws what the uninterrupted
    one would have drawn. An index without a position (another sampler, or ``dataset[i]`` by
    hand) leaves the generators as they are.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads ``sample_idx``, which the dataset sets to the index it was asked for."""
        index = results.get("sample_idx")
        if isinstance(index, SampleIndex):
            words = np.random.SeedSequence((index.seed, index.position)).generate_state(6)
            np.random.seed(words[:4])
            random.seed(int(words[4]))
            if get_worker_info() is not None:
                # For other people's transforms. In the main process torch's generator belongs to
                # the model, where a resume restores it.
                torch.default_generator.manual_seed(int(words[5]))
        return results


@TRANSFORMS.register_module()
class LoadFolderImage(BaseTransform):  # type: ignore[misc]
    """Reads ``img_path`` as ``uint8 [H, W, channels]``; the rules are those of `images.reading`.

    Sets ``img``, ``img_shape`` and ``ori_shape`` (both ``(H, W)``).

    Args:
        channels (int): Channels that the model takes. `FolderSegDataset` sets it. Defaults to 3,
            as BGR.
    """

    def __init__(self, *, channels: int = 3) -> None:
        self.channels = channels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the image."""
        image = read_image(results["img_path"], channels=self.channels)
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadFolderAnnotations(BaseTransform):  # type: ignore[misc]
    """Reads ``seg_map_path`` and maps its values to internal class ids.

    Needs ``label_table``, which `FolderSegDataset` provides. Sets ``gt_seg_map``
    ``uint8 [H, W]``, 255 where unlabelled. Comes after the image and before any resizing.

    Raises:
        BadFileError: If the mask is unreadable, holds an unknown value or differs from the image
            in size.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the mask."""
        path = results["seg_map_path"]
        if "label_table" not in results:
            raise ValueError(
                f"{path}: LoadFolderAnnotations reads the masks of a FolderSegDataset only. Use "
                "LoadAnnotations for other datasets."
            )
        mask = read_mask(path)
        shape = results.get("ori_shape")
        if shape is not None and tuple(shape) != mask.shape[:2]:
            raise BadFileError(
                f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} (width x height) but its "
                f"image {results['img_path']} is {shape[1]}x{shape[0]} when shown. They must be "
                "equal: resize or turn the mask, or pair the right files."
            )
        results["gt_seg_map"] = results["label_table"](mask, path)
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):  # type: ignore[misc]
    """Resizes the image, aspect kept, until it just covers the window on both sides.

    The rule is that of `images.short_side`. ``ori_shape`` and the annotations stay as they are:
    predictions are compared at the original size.

    Args:
        size (int | tuple[int, int]): Window size, ``(height, width)``.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise ValueError(f"ResizeShortSide: size is {size}; allowed are sizes of 1 and more.")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resizes ``img`` ``[h, w, C]``."""
        rows, cols = results["img"].shape[:2]
        results["img"] = resize_to_cover(results["img"], self.size)
        height, width = results["img"].shape[:2]
        results["img_shape"] = results["pad_shape"] = (height, width)
        results["scale_factor"] = (width / cols, height / rows)
        results["keep_ratio"] = True
        return results

    def __repr__(self) -> str:
        return f"ResizeShortSide(size={self.size})"


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
