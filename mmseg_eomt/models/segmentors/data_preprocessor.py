"""Normalisation of images that may differ in size when testing."""

from __future__ import annotations

from typing import Any

from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS


@MODELS.register_module()
class EoMTDataPreProcessor(SegDataPreProcessor):  # type: ignore[misc]
    """mmseg's ``SegDataPreProcessor``, which also takes test images of different sizes.

    In testing ``inputs`` is a list of normalised images ``[C, H, W]``; nothing is padded, so
    windows can be cut from the images themselves. In training it is mmseg's, unchanged.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Moves images to the device, reorders channels and normalises there."""
        if training:
            result: dict[str, Any] = super().forward(data, training)
            return result
        data = self.cast_data(data)
        images = []
        for image in data["inputs"]:
            image = image.flip(0) if self.channel_conversion and image.size(0) == 3 else image
            image = image.float()
            images.append((image - self.mean) / self.std if self._enable_normalize else image)
        return dict(inputs=images, data_samples=data.get("data_samples"))
