"""An exported model held against PyTorch, and the report of it.

ONNX Runtime's CPU kernels know no bfloat16. Here every operator computes in float32 and its result
is rounded to bfloat16, which is what hardware does whose products accumulate in float32.

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
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_eomt.deploy.agreement import LIMITS, Limits
from mmseg_eomt.deploy.half_precision import MOVES
from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.onnx_file import write_model
from mmseg_eomt.deploy.onnx_graph import Graph, array_of, replace_nodes
from mmseg_eomt.deploy.pictures import Pixels, graph_input, network_input
from mmseg_eomt.deploy.runners import OnnxRunner, Runner


@dataclasses.dataclass(frozen=True)
class MiouPair:
    """mIoU in percent on a validation set, at the images' own sizes.

    Args:
        reference: Of PyTorch in float32.
        exported: Of the exported model.
        images: How many were counted.
        max_drop: By how much the exported model may be worse.
    """

    reference: float
    exported: float
    images: int
    max_drop: float

    @property
    def drop(self) -> float:
        """By how much the exported model is worse."""
        return self.reference - self.exported

    @property
    def failed(self) -> bool:
        """Whether it is worse by more than allowed. (A NaN is.)"""
        return not self.drop <= self.max_drop


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Args:
        path: The ONNX file.
        metadata: What it says about itself.
        comparisons: Against PyTorch in float32; empty if it was not verified.
        notes: What a user should know about these.
        miou: mIoU of both; None without a dataset.
    """

    path: Path
    metadata: DeployMetadata
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    miou: MiouPair | None = None

    def failures(self) -> tuple[Comparison, ...]:
        """Comparisons outside the limits of the precision."""
        limits = LIMITS[self.metadata.precision]
        return tuple(item for item in self.comparisons if not item.within(limits))


def print_result(result: ExportResult, console: Console) -> None:
    """Print the comparisons as a table, and the notes."""
    limits = LIMITS[result.metadata.precision]
    if result.comparisons:
        table = Table(
            "batch", "height x width", "pictures", "classes", "same label", "largest", "mean", "",
            title=f"ONNX Runtime ({result.metadata.precision}) against PyTorch (fp32)",
        )  # fmt: skip
        for item in result.comparisons:
            table.add_row(
                str(item.batch),
                f"{item.size[0]} x {item.size[1]}",
                str(item.pictures),
                str(item.classes),
                f"{item.agreement:.4%}",
                _number(item.largest),
                _number(item.mean),
                "ok" if item.within(limits) else "FAILED",
            )
        table.add_row(
            "limit", "", "", "", f"{limits.agreement:.2%}", f"{limits.largest:g}",
            f"{limits.mean:g}", "",
        )  # fmt: skip
        console.print(table)
    if result.miou is not None:
        pair = result.miou
        console.print(
            f"mIoU on {pair.images} validation images: PyTorch {pair.reference:.2f}, ONNX Runtime "
            f"({result.metadata.precision}) {pair.exported:.2f} ({-pair.drop:+.2f}; "
            f"allowed: {-pair.max_drop:+.2f}){' FAILED' if pair.failed else ''}.",
            highlight=False,
        )
    for note in result.notes:
        console.print(note, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def emulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a bfloat16 graph into a float32 one that rounds where the other computes.

    Args:
        model: A model from `convert_precision(..., dtype='bf16')`. It is not changed.

    Returns:
        A float32 model with the same inputs and outputs, for checking: it is twice as large and
        slower.

    Raises:
        ValueError: If an input or output of the graph is bfloat16.
    """
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            raise ValueError(
                f"{value.name!r} of the ONNX model is bfloat16: NumPy has no such type."
            )
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    del emulated.graph.value_info[:]
    types = Graph(emulated).types
    for tensor in emulated.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.from_array(array_of(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
    nodes = []
    for node in emulated.graph.node:
        nodes.append(node)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
        if node.op_type in MOVES:
            continue  # what it moves is rounded already
        for place, name in enumerate(node.output):
            if name and types[name] == TensorProto.BFLOAT16:
                node.output[place] = f"{name}_exact"
                nodes += _rounding(f"{name}_exact", name)
    replace_nodes(emulated, nodes)
    return emulated


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    middle = f"{target}_rounded"
    return [
        helper.make_node("Cast", [source], [middle], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [middle], [target], to=TensorProto.FLOAT),
    ]


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
