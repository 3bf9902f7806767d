"""A picture of predictions beside the truth, at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.images.painting import Pixels, comparison, fallback_palette
from mmseg_eomt.images.reading import as_rgb, read_image


@HOOKS.register_module()
class PredictionPictureHook(Hook):  # type: ignore[misc]
    """Writes ``pictures/step_000123.png`` in the run folder and sends it to the backends.

    Args:
        num_images (int): The first so many images of the validation set. Defaults to 4.
        tile (int): Width of each of the three columns in pixels. Defaults to 320.

    Raises:
        ValueError: If a number is not positive.
    """

    # After the metrics and before the logger closes anything.
    priority = "LOW"

    def __init__(self, *, num_images: int = 4, tile: int = 320) -> None:
        if num_images < 1 or tile < 16:
            raise ValueError(
                f"PredictionPictureHook got num_images={num_images}, tile={tile}: they must be at "
                "least 1 and 16."
            )
        self.num_images, self.tile = num_images, tile
        self._rows: list[tuple[Pixels, NDArray[Any] | None, NDArray[Any]]] = []

    def before_val_epoch(self, runner: Any) -> None:
        """Starts a new picture."""
        self._rows = []

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Keeps image, truth and prediction of the first images."""
        if not is_main_process():
            return
        channels = getattr(runner.val_dataloader.dataset, "in_channels", 3)
        for sample in (outputs or [])[: self.num_images - len(self._rows)]:
            truth = sample.gt_sem_seg if "gt_sem_seg" in sample else None
            self._rows.append(
                (
                    as_rgb(read_image(sample.img_path, channels=channels)),
                    None if truth is None else _labels(truth),
                    _labels(sample.pred_sem_seg),
                )
            )

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Writes the picture."""
        if not self._rows:
            return
        meta = getattr(runner.val_dataloader.dataset, "metainfo", {})
        classes = meta.get("classes") or self._numbered()
        palette = meta.get("palette") or fallback_palette(len(classes))
        sheet = comparison(self._rows, classes=classes, palette=palette, tile=self.tile)
        self._rows = []
        step = int(runner.message_hub.get_info("iter", -1)) + 1
        path = Path(runner.work_dir) / "pictures" / f"step_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path)
        runner.visualizer.add_image("predictions", sheet, step=step)

    def _numbered(self) -> list[str]:
        highest = max(int(prediction.max()) for _, _, prediction in self._rows)
        return [f"class {index}" for index in range(highest + 1)]


def _labels(data: Any) -> NDArray[Any]:
    """``[H, W]`` of a PixelData that holds ``[1, H, W]``."""
    return np.asarray(data.data.squeeze(0).cpu().numpy())
