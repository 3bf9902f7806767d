"""Features of the teacher's backbone for image files.

Shape legend: F files, N patches, C channels, S side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinov2_pretraining.data.views.crop_boxes import Box
from dinov2_pretraining.data.views.view_resize import resize_box
from mmseg_eomt.images.reading import read_image

_THREADS = 4  # files are decoded while the model runs
MARGIN = 7 / 8  # 224 of 256 pixels, the rule of ImageNet's evaluations


def central_view(path: str, size: int, *, share: float = MARGIN) -> NDArray[np.uint8]:
    """The square in the centre of an image, resized bicubically.

    Args:
        path (str): The file.
        size (int): S.
        share (float): Side of the square as a share of the image's shorter side. Defaults to
            7/8.

    Returns:
        ndarray: ``uint8 [S, S, 3]`` RGB.

    Raises:
        BadFileError: If the file cannot be read.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * share))
    box = Box((height - side) // 2, (width - side) // 2, side, side)
    return np.ascontiguousarray(
        resize_box(np.ascontiguousarray(image), box, (size, size))[..., ::-1]
    )


@torch.no_grad()
def teacher_features(model: Any, views: NDArray[np.uint8] | Tensor) -> tuple[Tensor, Tensor]:
    """Class tokens and patches after the final norm, in float32.

    Args:
        model (DINOv2Pretraining): Whose teacher is asked.
        views (ndarray): ``uint8 [F, S, S, 3]`` RGB.

    Returns:
        tuple[Tensor, Tensor]: ``[F, C]`` and ``[F, N, C]``, on the model's device.
    """
    preprocessor = model.data_preprocessor
    images = torch.as_tensor(views).permute(0, 3, 1, 2).to(preprocessor.mean.device)
    classes, patches = model.teacher.encoder(
        (images.float() - preprocessor.mean) / preprocessor.std
    )
    return classes.float(), patches.float()


def class_tokens(model: Any, paths: Sequence[str], *, size: int, batch_size: int) -> Tensor:
    """Class tokens of the central views of many files, a batch at a time.

    Args:
        model (DINOv2Pretraining): Whose teacher is asked.
        paths (Sequence[str]): F files.
        size (int): S.
        batch_size (int): Files a forward pass.

    Returns:
        Tensor: ``[F, C]``, float32 on the CPU.

    Raises:
        BadFileError: If a file cannot be read.
    """
    parts = [torch.zeros(0, model.teacher.encoder.embed_dims)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for views in _batches(pool, paths, size=size, batch_size=batch_size):
            parts.append(teacher_features(model, views)[0].cpu())
    return torch.cat(parts)


def _batches(
    pool: ThreadPoolExecutor, paths: Sequence[str], *, size: int, batch_size: int
) -> Iterator[NDArray[np.uint8]]:
    def read(start: int) -> list[Any]:
        return [pool.submit(central_view, path, size) for path in paths[start : start + batch_size]]

    ahead = read(0)
    for start in range(0, len(paths), batch_size):
        current, ahead = ahead, read(start + batch_size)
        yield np.stack([future.result() for future in current])
