"""A backend model that is tested as the segmentor it was made of: windows, averages, original size.

Shape legend: n windows, K classes, C channels, h/w the resized image (canvas), H/W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmdeploy.codebase.mmseg.deploy import segmentation_model
from mmdeploy.utils import (
    get_codebase_config,
    get_input_shape,
    get_model_inputs,
    is_dynamic_batch,
    is_dynamic_shape,
)
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from mmseg_eomt.images.windows import cover, wished_window
from mmseg_eomt.models.eomt_segmentor import checked_test_cfg
from mmseg_eomt.models.window_scores import label_map_of_scores

MODEL_TYPE = "eomt"

# MMDeploy's registry of backend segmentors; `codebase_config.model_type` names an entry.
BACKEND_SEGMENTORS = segmentation_model.__BACKEND_MODEL


@BACKEND_SEGMENTORS.register_module(MODEL_TYPE)
class EoMTBackendSegmentor(segmentation_model.End2EndModel):  # type: ignore[misc]
    """Runs the exported graph on the windows of an image.

    A graph of scores gives the label maps of `EoMTSegmentor`: scores are averaged where windows
    overlap, resized to the original size, and the best is taken. Labels cannot be averaged: of a
    graph of labels the windows meet in the middle of their overlap, and the map is resized to the
    nearest label, as MMDeploy does it.

    Args:
        backend (Backend): MMDeploy's.
        backend_files (Sequence[str]): The model's files.
        device (str): Where it runs.
        deploy_cfg (Config): The deploy config.
        data_preprocessor (dict | nn.Module): That of the segmentor.
        test_cfg (dict, optional): That of the segmentor.
        kwargs: Of MMDeploy's ``End2EndModel``.

    Raises:
        ValueError: If ``test_cfg`` has an unknown key or value.
    """

    def __init__(
        self,
        backend: Any,
        backend_files: Sequence[str],
        device: str,
        deploy_cfg: Any = None,
        data_preprocessor: Any = None,
        *,
        test_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(data_preprocessor, Mapping):
            # mmengine would look the name up in its root registry.
            data_preprocessor = MODELS.build({"type": "EoMTDataPreProcessor", **data_preprocessor})
        super().__init__(
            backend,
            backend_files,
            device,
            deploy_cfg,
            data_preprocessor=data_preprocessor,
            **kwargs,
        )
        self.test_cfg = checked_test_cfg(dict(test_cfg or {}))
        self.gives_labels = bool(get_codebase_config(deploy_cfg).get("with_argmax", True))
        self.fixed_size = _fixed_size(deploy_cfg)
        self.window_batch = min(self.test_cfg["window_batch"], _largest_batch(deploy_cfg))

    @torch.no_grad()
    def forward(
        self,
        inputs: Tensor | list[Tensor],
        data_samples: list[SegDataSample] | None = None,
        mode: str = "predict",
        **kwargs: Any,
    ) -> list[SegDataSample]:
        """Label maps at the original size.

        Args:
            inputs (Tensor | list[Tensor]): Normalised images ``[C, h, w]`` of any sizes.
            data_samples (list[SegDataSample], optional): Their ``ori_shape`` says the size of the
                result; without them it is that of the input.
            mode (str): 'predict'.

        Returns:
            list[SegDataSample]: ``pred_sem_seg`` holds ``int32 [1, H, W]``, class indices.

        Raises:
            ValueError: If the mode is another, or the graph has another size than the windows.
        """
        if mode != "predict":
            raise ValueError(f"mode is {mode!r}: a backend model can only 'predict'.")
        if data_samples is None:
            data_samples = [
                SegDataSample(metainfo={"ori_shape": tuple(image.shape[-2:])}) for image in inputs
            ]
        for image, sample in zip(inputs, data_samples, strict=True):
            height, width = sample.metainfo["ori_shape"][:2]
            labels = self._labels(image.to(self.device), (height, width))
            sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return data_samples

    def _labels(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Class indices ``int32 [H, W]`` of ``image [C, h, w]``."""
        canvas = (image.shape[-2], image.shape[-1])
        window, starts = cover(canvas, wished_window(self.test_cfg, canvas))
        if self.fixed_size not in (None, window):
            raise ValueError(_other_size(self.fixed_size, window, canvas))
        if self.gives_labels:
            joined = self._joined_labels(image, window, starts)
            if canvas == size:
                return joined
            return F.interpolate(joined[None, None].float(), size, mode="nearest")[0, 0].int()
        return label_map_of_scores(self._averaged_scores(image, window, starts), size)

    def _averaged_scores(
        self, image: Tensor, window: tuple[int, int], starts: list[tuple[int, int]]
    ) -> Tensor:
        """Scores ``float32 [h, w, K]`` of an image, averaged where windows overlap."""
        canvas = windows = torch.empty(0)
        for (top, left), scores in self._run(image, window, starts):
            if len(canvas) == 0:
                canvas = scores.new_zeros((*image.shape[-2:], len(scores)), dtype=torch.float32)
                windows = scores.new_zeros((*image.shape[-2:], 1), dtype=torch.float32)
            place = (slice(top, top + window[0]), slice(left, left + window[1]))
            canvas[place] += scores.permute(1, 2, 0)
            windows[place] += 1
        return canvas if len(starts) == 1 else canvas.div_(windows)

    def _joined_labels(
        self, image: Tensor, window: tuple[int, int], starts: list[tuple[int, int]]
    ) -> Tensor:
        """Labels ``int32 [h, w]`` of an image."""
        height, width = image.shape[-2:]
        rows = _shares(sorted({top for top, _ in starts}), window[0], height)
        columns = _shares(sorted({left for _, left in starts}), window[1], width)
        joined = torch.empty(0)
        for (top, left), labels in self._run(image, window, starts):
            if len(joined) == 0:
                joined = labels.new_empty((height, width), dtype=torch.int32)
            (first, last), (begin, end) = rows[top], columns[left]
            joined[first:last, begin:end] = labels[
                0, first - top : last - top, begin - left : end - left
            ]
        return joined

    def _run(self, image: Tensor, window: tuple[int, int], starts: list[tuple[int, int]]) -> Any:
        """Yields the place of each window and what the graph gives for it, ``[K or 1, ., .]``."""
        height, width = window
        for first in range(0, len(starts), self.window_batch):
            part = starts[first : first + self.window_batch]
            crops = [image[:, top : top + height, left : left + width] for top, left in part]
            outputs = self.wrapper({self.input_name: torch.stack(crops)})
            yield from zip(part, outputs[self.output_names[0]], strict=True)


def _shares(starts: list[int], window: int, length: int) -> dict[int, tuple[int, int]]:
    """First pixel and the one after the last that each window has to itself, by its start."""
    seams = [0, *((before + window + after) // 2 for before, after in pairwise(starts)), length]
    return dict(zip(starts, pairwise(seams), strict=True))


def _fixed_size(deploy_cfg: Any) -> tuple[int, int] | None:
    """Height and width of a static graph, None for others."""
    size = get_input_shape(deploy_cfg)
    if size is None or is_dynamic_shape(deploy_cfg):
        return None
    return int(size[1]), int(size[0])


def _largest_batch(deploy_cfg: Any) -> int:
    """The most images that the graph takes at once."""
    if not is_dynamic_batch(deploy_cfg):
        return 1
    limits = [
        shapes["max_shape"][0]
        for inputs in get_model_inputs(deploy_cfg)
        for shapes in inputs.get("input_shapes", {}).values()
    ]
    return min(limits, default=2**31)


def _other_size(
    fixed: tuple[int, int] | None, window: tuple[int, int], canvas: tuple[int, int]
) -> str:
    assert fixed is not None
    return (
        f"the exported model takes {fixed[0]}x{fixed[1]} pixels (height x width; "
        f"onnx_config.input_shape), but an image of {canvas[0]}x{canvas[1]} after resizing is cut "
        f"in windows of {window[0]}x{window[1]}: deploy with onnx_config.input_shape="
        f"[{window[1]}, {window[0]}] (width, height), or with a dynamic deploy config."
    )
