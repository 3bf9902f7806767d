"""Using a trained model: `load_model(path).predict(image)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmseg_eomt.checkpoints.weights_file import load_state, read_weights
from mmseg_eomt.header import ModelHeader, model_config
from mmseg_eomt.images.painting import check_opacity, paint
from mmseg_eomt.images.reading import PixelsLike, as_pixels
from mmseg_eomt.images.resampling import resize_to_cover

ImageLike = PixelsLike | Tensor


class SegmentationModel:
    """A model with all that its weights file says: classes, ids, colours, sizes.

    Made by `load_model`.

    Attributes:
        header: The header of the weights file.
        segmentor: The network, in eval mode.
    """

    def __init__(self, segmentor: nn.Module, header: ModelHeader) -> None:
        self.segmentor = segmentor.eval()
        self.header = header
        # Class of a pixel -> the id that the user gave to the class.
        self._ids = torch.tensor(header.class_ids, dtype=torch.int64)

    @property
    def classes(self) -> dict[int, str]:
        """Class names by the ids that predictions carry."""
        return dict(zip(self.header.class_ids, self.header.classes, strict=True))

    @property
    def palette(self) -> dict[int, tuple[int, int, int]]:
        """RGB colours by the ids that predictions carry."""
        return dict(zip(self.header.class_ids, self.header.palette, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.segmentor.parameters()).device

    def predict(self, image: ImageLike) -> Tensor:
        """Predict one image.

        Args:
            image: A path; a PIL image; an array `uint8 [H, W, 3]` in RGB order or `[H, W]` grey;
                or a tensor `[3, H, W]` in RGB order, uint8 (0 to 255) or float (0 to 1).

        Returns:
            Class ids `int64 [H, W]` at the size of the image, on the CPU. A path and a PIL image
            are turned by their EXIF orientation first.

        Raises:
            FileNotFoundError: If the path does not exist.
            ValueError: If it is no such image.
        """
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[ImageLike]) -> list[Tensor]:
        """Predict images of any sizes; their windows share forward passes.

        Args:
            images: As for `predict`.

        Returns:
            Class ids `int64 [H, W]` of each image.
        """
        if not images:
            return []
        inputs, samples = [], []
        for image in images:
            pixels = self._pixels(image)
            size = pixels.shape[:2]
            if self.header.test_size is not None:
                pixels = resize_to_cover(pixels, self.header.test_size)
            # [H, W, C] -> [C, H, W]
            inputs.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
            meta = {"ori_shape": size, "img_shape": tuple(pixels.shape[:2])}
            samples.append(SegDataSample(metainfo=meta))
        results = self.segmentor.test_step(  # type: ignore[operator]
            {"inputs": inputs, "data_samples": samples}
        )
        # An int32 index: one of int64 would double the memory of a large label map.
        return [self._ids[sample.pred_sem_seg.data[0].cpu()] for sample in results]

    def overlay(
        self, image: ImageLike, mask: Tensor | None = None, *, opacity: float = 0.5
    ) -> Image.Image:
        """Paint class ids over an image.

        Args:
            image: As for `predict`.
            mask: Class ids `[H, W]`; None predicts them.
            opacity: Share of the class colours, 0 to 1.

        Raises:
            ValueError: If `opacity` is out of range, or mask and image differ in size.
        """
        check_opacity(opacity)  # before the prediction
        pixels = self._pixels(image)
        ids = (self.predict(image) if mask is None else mask).cpu().numpy()
        return paint(pixels, ids, self.palette, opacity=opacity)

    def to(self, device: str | torch.device) -> SegmentationModel:
        """Move the network."""
        self.segmentor.to(device)
        return self

    def _pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return `uint8 [H, W, C]`; three channels as BGR, as the training images were read."""
        if isinstance(image, Tensor):
            image = _tensor_pixels(image, self.header.in_channels)
        return as_pixels(image, channels=self.header.in_channels)


def load_model(path: str | Path, *, device: str | torch.device | None = None) -> SegmentationModel:
    """Load a trained model from lean weights or a training checkpoint.

    Nothing in the file is executed: the model is built from the header's plain data.

    Args:
        path: A `.safetensors` file of `exported/`, or a `.pth` checkpoint of a run.
        device: Where to put it; None takes the GPU if there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no weights file of mmseg_eomt, or is damaged.
    """
    header, state = read_weights(path)
    segmentor = build_segmentor(header)
    load_state(segmentor, state, source=path)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return SegmentationModel(segmentor.to(device), header)


load_model_from_checkpoint = load_model


def build_segmentor(header: ModelHeader) -> nn.Module:
    """Build the network that a header describes, without weights."""
    init_default_scope("mmseg")
    segmentor: nn.Module = MODELS.build(model_config(header))
    return segmentor


def _tensor_pixels(image: Tensor, channels: int) -> NDArray[np.uint8]:
    """Turn `[C, H, W]` into `uint8 [H, W, C]`."""
    if image.ndim != 3 or image.shape[0] != channels:
        raise ValueError(
            f"image is a tensor {tuple(image.shape)}: give one image [{channels}, H, W]."
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = (float(bound) for bound in image.aminmax())
        if low < 0.0 or high > 1.0:
            raise ValueError(
                f"image is a float tensor from {low:.3g} to {high:.3g}: float pixels lie between 0 "
                "and 1, not normalised; or give uint8."
            )
        image = (image * 255.0).round()
    elif image.dtype != torch.uint8:
        raise ValueError(f"image is a tensor of {image.dtype}: give uint8 or float.")
    return np.asarray(image.to(torch.uint8).permute(1, 2, 0).numpy())
