"""Pictures of what the teacher's patches tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinov2_pretraining.monitors.due import check_interval, is_due
from dinov2_pretraining.monitors.principal_components import patch_colors
from dinov2_pretraining.monitors.teacher_features import central_view, teacher_features
from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.errors import BadFileError
from mmseg_eomt.safe_write import replaced

_GAP = 4  # pixels between tiles


@HOOKS.register_module()
class PatchPictureHook(Hook):  # type: ignore[misc]
    """Writes ``pictures/patches_000123.png`` in the run folder, before the first step and later.

    A row for each image: its central square; the first three principal components of the
    teacher's patch features, over all the images together, as red, green and blue; the same of
    the foreground alone (`foreground`), over its own patches.

    Args:
        num_images (int): Images, spread evenly over the training images. Defaults to 4.
        grid (int): Patches across a picture, which gives its size. Defaults to 32: 448 pixels with
            patches of 14.
        interval (float | int): Share of the run (float) or steps (int) between pictures. Defaults
            to 0.1.

    Raises:
        ValueError: If an argument is wrong.
    """

    # After the teacher of the step is there.
    priority = "LOW"

    def __init__(self, *, num_images: int = 4, grid: int = 32, interval: float | int = 0.1) -> None:
        check_interval(interval, name="PatchPictureHook.interval")
        if num_images < 1 or grid < 3:
            raise ValueError(
                f"PatchPictureHook got num_images={num_images}, grid={grid}: they must be at least "
                "1 and 3."
            )
        self.num_images, self.grid, self.interval = num_images, grid, interval

    def before_train(self, runner: Any) -> None:
        """Shows where the run starts from."""
        if runner.iter == 0:
            self._draw(runner, 0)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Writes a picture where it is due."""
        done = runner.iter + 1
        if is_due(done, total=runner.max_iters, interval=self.interval):
            self._draw(runner, done)

    def _draw(self, runner: Any, done: int) -> None:
        if not is_main_process():
            return
        model: Any = unwrap(runner.model)
        size = self.grid * int(model.teacher.encoder.backbone.patch_size)
        views = _views(runner.train_dataloader.dataset, self.num_images, size)
        # One after the other: the pictures are larger than the views that the memory was planned
        # for.
        patches = [teacher_features(model, view[None])[1][0].cpu() for view in views]
        sheet = picture_sheet(views, patches, grid=(self.grid, self.grid))
        path = Path(runner.work_dir) / "pictures" / f"patches_{done:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            Image.fromarray(sheet).save(file, format="PNG")
        runner.visualizer.add_image("patches", sheet, step=done)


def picture_sheet(
    views: NDArray[np.uint8], patches: list[Tensor], *, grid: tuple[int, int]
) -> NDArray[np.uint8]:
    """Rows of image, components of all patches, components of the foreground.

    Args:
        views (ndarray): ``uint8 [I, S, S, 3]`` RGB.
        patches (list[Tensor]): I tensors ``[N, C]``.
        grid (tuple[int, int]): Patches ``(h, w)`` of a view.

    Returns:
        ndarray: ``uint8 [height, width, 3]`` RGB.
    """
    whole, front = patch_colors(torch.stack(patches), grid)
    side = views.shape[1]
    rows = []
    for view, *colors in zip(views, whole, front, strict=True):
        tiles = [view]
        for color in colors:
            small = Image.fromarray((color * 255).round().byte().numpy())
            tiles.append(np.asarray(small.resize((side, side), Image.Resampling.NEAREST)))
        rows.append(_joined(tiles, axis=1))
    return _joined(rows, axis=0)


def _joined(tiles: list[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    shape = list(tiles[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, dtype=np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)][1:]
    return np.concatenate(parts, axis=axis)


def _views(dataset: Any, count: int, size: int) -> NDArray[np.uint8]:
    """Central squares of ``count`` images spread over the data; of a bad file, the next one's."""
    total = len(dataset)
    views = []
    for number in range(min(count, total)):
        first = number * total // min(count, total)
        for index in range(first, first + total):
            path = dataset.get_data_info(index % total)["img_path"]
            try:
                views.append(central_view(path, size, share=1.0))
                break
            except (BadFileError, OSError):
                continue  # the dataset counts and names it
    return np.stack(views)
