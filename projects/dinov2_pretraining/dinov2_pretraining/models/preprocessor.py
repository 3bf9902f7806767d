"""Views as they leave the loader, on the device and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmseg.registry import MODELS
from torch import Tensor

VIEWS = ("global_views", "local_views")


@MODELS.register_module()
class ViewPreprocessor(BaseDataPreprocessor):  # type: ignore[misc]
    """Moves a batch and normalises views that are uint8.

    Where masked patches lie, and how much each counts, is worked out before masks are moved: to
    ask a GPU would be to wait for it.

    Args:
        mean (Sequence[float]): Of each channel, in grey levels from 0 to 255.
        std (Sequence[float]): Of each channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(non_blocking=True)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(
                f"data_preprocessor.mean is {list(mean)} and std {list(std)}: give as many numbers "
                "as images have channels, in grey levels from 0 to 255, std above 0."
            )
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepares a batch for the model.

        Args:
            data (dict): ``inputs`` with ``global_views`` ``[2*B, 3, Sg, Sg]``, ``local_views``
                ``[L*B, 3, Sl, Sl]`` and bool ``masks`` ``[2*B, N]``; ``data_samples``.
            training (bool): Not used.

        Returns:
            dict: The same; ``inputs`` has besides ``masked_index`` ``[M]``, places of masked
            patches in ``masks.flatten()``, and ``masked_weight`` ``[M]``, which adds up to the
            share of images that have a mask.
        """
        inputs = dict(data["inputs"])
        masks: Tensor = inputs["masks"]
        index = masks.flatten().nonzero().flatten()
        count = masks.sum(dim=1)
        inputs["masked_index"] = index
        inputs["masked_weight"] = 1.0 / (count[index // masks.shape[1]] * len(masks)).float()
        inputs = self.cast_data(inputs)
        for name in VIEWS:
            if inputs[name].dtype == torch.uint8:
                inputs[name] = (inputs[name].float() - self.mean) / self.std
        return {**data, "inputs": inputs}
