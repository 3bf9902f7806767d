"""Multi-crop: two large and several small views of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray

from dinov2_pretraining.data.views.crop_boxes import draw_box, sufficient_pixels
from dinov2_pretraining.data.views.view_colors import ColorRecipe
from dinov2_pretraining.data.views.view_resize import resize_box
from mmseg_eomt.images.reading import read_image

Bytes = NDArray[np.uint8]


@TRANSFORMS.register_module()
class MultiCropViews(BaseTransform):  # type: ignore[misc]
    """Reads an image and cuts the views that DINOv2 learns from.

    Each view is a random region (`draw_box`), resized bicubically to a square, mirrored in half of
    the cases, then changed in colour and blurred (`ColorRecipe`).

    Source of all defaults: facebookresearch/dinov2 @05c66df, data/augmentations.py and
    configs/ssl_default_config.yaml. There the probabilities of blur are written 1.0, 0.1 and 0.5,
    as in DINO and BYOL, and mean their opposites when run (facebookresearch/dinov3 issue 286):
    the released weights saw ``blur_prob=(0.0, 0.9, 0.5)``.

    ``img`` is taken if an earlier step has read it. Otherwise ``img_path`` is read once for all
    views, large JPEGs only as finely as the smallest views can show. Random numbers come from
    NumPy's global generator, which `SeedSample` seeds. Sets ``global_views``
    ``uint8 [2, 3, global_size, global_size]`` and ``local_views``
    ``uint8 [num_local, 3, local_size, local_size]``, both RGB and not normalised.

    Args:
        global_size (int): Side of the global views in pixels. Defaults to 224.
        local_size (int): Side of the local views in pixels; 96 for patches of 16. Defaults to 98.
        num_local (int): Local views of an image. Defaults to 8.
        global_scale (tuple[float, float]): Shares of the image's area. Defaults to (0.32, 1.0).
        local_scale (tuple[float, float]): The same of local views. Defaults to (0.05, 0.32).
        flip_prob (float): Probability of mirroring left and right. Defaults to 0.5.
        blur_prob (tuple[float, float, float]): Probability of a blur in the first and the second
            global view and in local ones. Defaults to (1.0, 0.1, 0.5).
        solarise_prob (float): Probability of solarisation in the second global view. Defaults to
            0.2.
        colors (dict, optional): Other fields of `ColorRecipe`, for all views. Defaults to None:
            its defaults.

    Raises:
        ValueError: If a size, a scale or a probability is out of its range.
    """

    def __init__(
        self,
        *,
        global_size: int = 224,
        local_size: int = 98,
        num_local: int = 8,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        flip_prob: float = 0.5,
        blur_prob: tuple[float, float, float] = (1.0, 0.1, 0.5),
        solarise_prob: float = 0.2,
        colors: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (
            ("global_size", global_size, 1),
            ("local_size", local_size, 1),
            ("num_local", num_local, 0),
        ):
            if value < least:
                raise ValueError(
                    f"MultiCropViews: {name} is {value}; allowed are {least} and more."
                )
        for name, (low, high) in (("global_scale", global_scale), ("local_scale", local_scale)):
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"MultiCropViews: {name} is {(low, high)}; allowed is 0 < low <= high <= 1."
                )
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"MultiCropViews: flip_prob is {flip_prob}; allowed are 0 to 1.")
        self.global_size, self.local_size, self.num_local = global_size, local_size, num_local
        self.global_scale = (float(global_scale[0]), float(global_scale[1]))
        self.local_scale = (float(local_scale[0]), float(local_scale[1]))
        self.flip_prob = flip_prob
        first, second, local = blur_prob
        shared = ColorRecipe(**(colors or {}))
        self._global_colors = (
            replace(shared, blur_prob=first),
            replace(shared, blur_prob=second, solarise_prob=solarise_prob),
        )
        self._local_colors = replace(shared, blur_prob=local)
        self.min_pixels = sufficient_pixels(global_size, scale=self.global_scale[0])
        if num_local:
            self.min_pixels = max(
                self.min_pixels, sufficient_pixels(local_size, scale=self.local_scale[0])
            )

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the views and drops ``img``.

        Raises:
            BadFileError: If the image cannot be read.
        """
        image = results.pop("img", None)
        if image is None:
            image = read_image(results["img_path"], min_pixels=self.min_pixels)
        image = np.ascontiguousarray(image)
        large = [
            self._view(image, self.global_size, self.global_scale, colors)
            for colors in self._global_colors
        ]
        small = [
            self._view(image, self.local_size, self.local_scale, self._local_colors)
            for _ in range(self.num_local)
        ]
        results["global_views"] = torch.from_numpy(_stack(large, self.global_size))
        results["local_views"] = torch.from_numpy(_stack(small, self.local_size))
        return results

    def _view(
        self, image: Bytes, size: int, scale: tuple[float, float], colors: ColorRecipe
    ) -> Bytes:
        box = draw_box((image.shape[0], image.shape[1]), scale=scale)
        view = resize_box(image, box, (size, size))
        if np.random.random() < self.flip_prob:
            view = np.ascontiguousarray(view[:, ::-1])
        return colors.apply(view)

    def __repr__(self) -> str:
        return (
            f"MultiCropViews(global_size={self.global_size}, local_size={self.local_size}, "
            f"num_local={self.num_local}, global_scale={self.global_scale}, "
            f"local_scale={self.local_scale}, flip_prob={self.flip_prob}, "
            f"colors={(*self._global_colors, self._local_colors)})"
        )


def _stack(views: list[Bytes], size: int) -> Bytes:
    """``[V, 3, size, size]`` RGB from views ``[size, size, 3]`` BGR."""
    stacked = np.empty((len(views), 3, size, size), dtype=np.uint8)
    for place, view in zip(stacked, views, strict=True):
        place[...] = view[..., ::-1].transpose(2, 0, 1)
    return stacked
