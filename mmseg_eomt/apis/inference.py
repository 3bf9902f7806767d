"""Using a trained model: load, predict, make fast, folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmseg_eomt.checkpoints.weights_file import load_state, read_weights
from mmseg_eomt.header import ModelHeader, model_config
from mmseg_eomt.images.painting import check_opacity, paint
from mmseg_eomt.images.prediction_files import plan_files, write_predictions
from mmseg_eomt.images.reading import PixelsLike, as_pixels
from mmseg_eomt.images.resampling import resize_to_cover
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.models.joint_attention import fold_weights

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


DTYPES = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COMPILE = (None, "default", "max-autotune")

Model = TypeVar("Model", SegmentationModel, EoMTSegmentor)


def optimize_for_inference(
    model: Model,
    *,
    dtype: str | None = None,
    compile: str | None = None,
    channels_last: bool = False,
    cuda_graphs: bool | None = None,
) -> Model:
    """Prepare a trained model for predictions only, in place.

    Always: no gradients, eval mode, layer scales folded into the projections before them, biases
    of query, key and value joined. These give the same predictions up to float32 rounding. The
    model's weights are no longer those of its file: do not train or save it afterwards.

    Args:
        model: From `load_model`, or its segmentor.
        dtype: None keeps float32; 'bf16' or 'fp16' turns the network to half precision. Class
            probabilities and the sums of scores stay in float32.
        compile: None, or the mode in which `torch.compile` compiles the network: 'default' or
            'max-autotune'. Compilation happens at the first prediction, and again for each other
            number or size of windows in a forward pass.
        channels_last: Whether the weights of convolutions lie channels-last.
        cuda_graphs: Whether a compiled network is replayed as a CUDA graph. None does so on CUDA.

    Returns:
        The same model. Its segmentor's attribute `optimizations` and the log say what was done.

    Raises:
        ValueError: If an argument is none of these, or CUDA graphs are asked for without CUDA or
            without `compile`, or the model is optimised already.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: None (float32), 'bf16', 'fp16'.")
    if compile not in COMPILE:
        raise ValueError(f"compile is {compile!r}; allowed: None, 'default', 'max-autotune'.")
    segmentor: Any = model.segmentor if isinstance(model, SegmentationModel) else model
    if getattr(segmentor, "optimizations", None):
        raise ValueError("The model is optimised already; load it again to optimise it otherwise.")
    device = next(segmentor.parameters()).device
    if cuda_graphs is None:
        cuda_graphs = compile is not None and device.type == "cuda"
    if cuda_graphs and (compile is None or device.type != "cuda"):
        raise ValueError(
            f"cuda_graphs=True with compile={compile!r} on {device}: CUDA graphs are made of a "
            "compiled network on a GPU. Give compile='default' and load the model on 'cuda'."
        )
    segmentor.eval().requires_grad_(False)
    fold_weights(segmentor.backbone.vit)
    done = ["layer scales folded, biases joined"]
    if dtype is not None:
        for part in (segmentor.backbone, segmentor.decode_head):
            part.to(DTYPES[dtype])
        done.append(f"network in {dtype}")
    if channels_last:
        segmentor.to(memory_format=torch.channels_last)
        done.append("convolutions channels-last")
    if compile is not None:
        mode = _mode(compile, cuda_graphs=cuda_graphs)
        # Static shapes: windows of one size are what the kernels are made for.
        segmentor.network = torch.compile(
            segmentor.network, dynamic=False, fullgraph=True, mode=mode
        )
        done.append(f"network compiled ({compile}{', CUDA graphs' if cuda_graphs else ''})")
    segmentor.optimizations = tuple(done)
    print_log(f"optimize_for_inference on {device}: {'; '.join(done)}.", logger="current")
    return model


def _mode(compile: str, *, cuda_graphs: bool) -> str:
    """The name that `torch.compile` has for it."""
    if compile == "default":
        return "reduce-overhead" if cuda_graphs else "default"
    return "max-autotune" if cuda_graphs else "max-autotune-no-cudagraphs"


def predict_files(
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    opacity: float = 0.5,
    precision: str = "fp32",
    compile: str | None = None,
) -> int:
    """Predict an image, or all images of a folder and its subfolders.

    Writes `out/masks/NAME.png` and `out/overlays/NAME.png`, see `write_predictions`.

    Args:
        checkpoint: Lean weights or a training checkpoint.
        images: An image or a folder.
        out: Folder of the results.
        device: Where to run; None takes the GPU if there is one.
        opacity: Of the class colours in overlays, 0 to 1.
        precision: 'fp32', 'bf16' or 'fp16', see `optimize_for_inference`.
        compile: None, 'default' or 'max-autotune', likewise.

    Returns:
        Number of images.

    Raises:
        FileNotFoundError: If there are no such images.
        ValueError: If results would overwrite inputs or each other, or a file is unreadable.
    """
    files = plan_files(images, out, opacity=opacity)
    model = load_model(checkpoint, device=device)
    if precision != "fp32" or compile is not None:
        dtype = None if precision == "fp32" else precision
        optimize_for_inference(model, dtype=dtype, compile=compile)
    return write_predictions(model, files)
