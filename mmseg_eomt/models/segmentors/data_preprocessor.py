"""Normalisation of images on the device, whatever their sizes.

Shape legend: B images, C channels, H/W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class EoMTDataPreProcessor(SegDataPreProcessor):  # type: ignore[misc]
    """mmseg's ``SegDataPreProcessor`` for crops of any size and test images of different sizes.

    Images cross to the device as uint8 and are normalised there. In training those smaller than
    the largest of the batch are padded at the right and bottom, with the mean colour and the
    label ``seg_pad_val``. In testing ``inputs`` becomes a list of images ``[C, H, W]`` and nothing
    is padded, so windows can be cut from the images themselves.

    Args:
        kwargs: As mmseg's, without ``size``, ``size_divisor``, ``pad_val`` and ``test_cfg``: sizes
            are those of the images.

    Raises:
        ValueError: If one of these is given.
    """

    def __init__(self, **kwargs: Any) -> None:
        needless = sorted({"size", "size_divisor", "pad_val", "test_cfg"} & set(kwargs))
        if needless:
            raise ValueError(
                f"data_preprocessor has {needless}, which EoMTDataPreProcessor does not take: it "
                "pads a training batch to its largest image and no test image. Leave them out."
            )
        super().__init__(**kwargs)
        # mmseg's own flag is named differently in its two families.
        self._reorders_channels = bool(kwargs.get("bgr_to_rgb") or kwargs.get("rgb_to_bgr"))

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalises ``inputs`` (list of ``[C, H, W]`` or ``[B, C, H, W]``)."""
        data = self.cast_data(data)
        images, samples = list(data["inputs"]), data.get("data_samples")
        if not training:
            return {"inputs": [self._normalise(image) for image in images], "data_samples": samples}
        height = max(image.shape[-2] for image in images)
        width = max(image.shape[-1] for image in images)
        if all(image.shape[-2:] == (height, width) for image in images):
            inputs = self._normalise(torch.stack(images))
        else:
            inputs = torch.stack([_pad(self._normalise(i), height, width, 0) for i in images])
            for sample in samples or ():
                labels = sample.gt_sem_seg.data
                del sample.gt_sem_seg.data
                sample.gt_sem_seg.data = _pad(labels, height, width, self.seg_pad_val)
        if self.batch_augments is not None:
            inputs, samples = self.batch_augments(inputs, samples)
        return {"inputs": inputs, "data_samples": samples}

    def _normalise(self, images: Tensor) -> Tensor:
        """Reorders and normalises ``[..., C, H, W]``."""
        if self._reorders_channels and images.shape[-3] == 3:
            images = images.flip(-3)
        if not self._enable_normalize:
            return images.float()
        # One float copy of the image, not three.
        normalised: Tensor = (images - self.mean).div_(self.std)
        return normalised


def _pad(image: Tensor, height: int, width: int, value: float) -> Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=value)
