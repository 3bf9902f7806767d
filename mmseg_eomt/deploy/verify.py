"""An exported model against the model it was made of.

ONNX Runtime runs the file, PyTorch the segmentor in float32 by its own post-processing, row by
row, which shares nothing with the exported graph.

Shape legend: B images, K classes, H/W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from mmseg_eomt.deploy.emulate import emulate_bf16
from mmseg_eomt.deploy.files import write_model
from mmseg_eomt.deploy.limits import Limits
from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.pictures import Pixels, graph_input, network_input
from mmseg_eomt.deploy.runners import OnnxRunner, Runner


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One way of running the model, on some pictures.

    Args:
        batch: Images at a time.
        size: Height and width in pixels.
        pictures: How many were compared.
        classes: How many classes the reference found on them.
        agreement: Share of pixels with the same label.
        largest: Largest difference of a score in units of the largest score; None without scores.
        mean: Mean difference, likewise.
    """

    batch: int
    size: tuple[int, int]
    pictures: int
    classes: int
    agreement: float
    largest: float | None
    mean: float | None

    def within(self, limits: Limits) -> bool:
        """Whether all differences are allowed. (A NaN is not.)"""
        scores = self.largest is None or (
            self.mean is not None and self.largest <= limits.largest and self.mean <= limits.mean
        )
        return self.agreement >= limits.agreement and scores


def plans(metadata: DeployMetadata) -> Iterator[tuple[int, tuple[int, int]]]:
    """Batch sizes and sizes to check: 1, 2 and the largest, and another size where it is open."""
    size = (metadata.height, metadata.width)
    batches = sorted({1, 2, metadata.batch_size}) if "batch" in metadata.dynamic else None
    for batch in batches or [metadata.batch_size]:
        yield batch, size
    patch = metadata.model.patch_size
    # No whole number of patches, and not the same of them as before.
    height = size[0] + patch + 1 if "height" in metadata.dynamic else size[0]
    width = max(patch, size[1] * 3 // 4 - 1) if "width" in metadata.dynamic else size[1]
    if (height, width) != size:
        yield (batches or [metadata.batch_size])[-1], (height, width)


def open_file(path: Path, metadata: DeployMetadata) -> Runner:
    """Open a file in ONNX Runtime on the CPU. bfloat16, which it lacks there, is emulated."""
    if metadata.precision != "bf16":
        return OnnxRunner(path, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        emulated = Path(folder) / path.name
        write_model(emulated, emulate_bf16(onnx.load(path)))
        return OnnxRunner(emulated, providers=["CPUExecutionProvider"])


def compare(
    runner: Runner,
    segmentor: nn.Module,
    metadata: DeployMetadata,
    pictures: Sequence[Pixels],
    *,
    batch: int,
) -> Comparison:
    """Compare on pictures of one size.

    Args:
        runner: Of the exported model.
        segmentor: The model it was made of, in float32.
        metadata: Of the exported model.
        pictures: As `read_image` gives them. They are repeated to fill the last batch.
        batch: Images at a time.
    """
    equal: list[float] = []
    means: list[float] = []
    found_classes: set[int] = set()
    largest, scale = 0.0, 0.0
    for first in range(0, len(pictures), batch):
        group = [pictures[(first + index) % len(pictures)] for index in range(batch)]
        results = runner.run(graph_input(group, metadata))
        labels = _indices(results, metadata)
        # PyTorch takes one image at a time: scores of a batch can take gigabytes.
        for index, picture in enumerate(group):
            expected = _reference(segmentor, network_input(picture[None], metadata.model))
            best = expected.argmax(0)
            found_classes.update(np.unique(best).tolist())
            equal.append(float((labels[index] == best).mean()))
            if "scores" in results:
                difference = np.abs(results["scores"][index] - expected)
                largest = max(largest, float(difference.max()))
                means.append(float(difference.mean()))
                scale = max(scale, float(expected.max()))
    return Comparison(
        batch=batch,
        size=(pictures[0].shape[0], pictures[0].shape[1]),
        pictures=len(pictures),
        classes=len(found_classes),
        agreement=float(np.mean(equal)),
        largest=largest / scale if means else None,
        mean=float(np.mean(means)) / scale if means else None,
    )


def _reference(segmentor: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``[K, H, W]`` of PyTorch for an image ``[1, C, H, W]``."""
    device = next(segmentor.parameters()).device
    with torch.inference_mode(), evaluating(segmentor):
        scores = segmentor.encode_decode(  # type: ignore[operator]
            torch.from_numpy(images).to(device), [{}]
        )
    result: NDArray[np.float32] = scores[0].cpu().numpy()
    return result


@contextlib.contextmanager
def evaluating(segmentor: nn.Module) -> Iterator[None]:
    """Puts each module into eval mode for a while."""
    modes = {module: module.training for module in segmentor.modules()}
    try:
        segmentor.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _indices(results: dict[str, NDArray[Any]], metadata: DeployMetadata) -> NDArray[np.int64]:
    """Class indices ``[B, H, W]``; -1 for an id that no class has."""
    if "labels" not in results:
        return np.asarray(results["scores"].argmax(1))
    labels = results["labels"]
    if metadata.label_values == "index":
        return np.asarray(labels, np.int64)
    indices = np.full(labels.shape, -1, np.int64)
    for index, class_id in enumerate(metadata.model.class_ids):
        indices[labels == class_id] = index
    return indices
