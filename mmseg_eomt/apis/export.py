"""Exporting a trained model: `export_onnx("model.onnx", checkpoint="best.safetensors")`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from mmseg_eomt.apis.evaluate import described, miou_pair
from mmseg_eomt.apis.inference import SegmentationModel, load_model
from mmseg_eomt.checkpoints.describe import package_versions
from mmseg_eomt.datasets.data_description import load_data
from mmseg_eomt.datasets.file_pairs import find_pairs
from mmseg_eomt.deploy.metadata import (
    DEFAULT_OPSET,
    DeployMetadata,
    check_opset,
    check_packages,
    deploy_metadata,
)
from mmseg_eomt.images.prediction_files import find_images

if TYPE_CHECKING:
    import onnx

    from mmseg_eomt.deploy.pictures import Pixels
    from mmseg_eomt.deploy.verify import ExportResult
    from mmseg_eomt.images.reading import PixelsLike


SAMPLES = 8
"""Pictures on which magnitudes are measured for half precision."""


def export_onnx(
    out: str | Path,
    *,
    checkpoint: str | Path | SegmentationModel,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 1,
    dynamic: str | Sequence[str] = "batch",
    precision: str = "fp32",
    outputs: str = "both",
    include_preprocessing: bool = False,
    channel_order: str | None = None,
    opset_version: int = DEFAULT_OPSET,
    simplify: bool = True,
    verify: bool = True,
    images: str | Path | Sequence[PixelsLike] | None = None,
    data: Any = None,
    max_drop: float | None = None,
    debug: bool = False,
) -> ExportResult:
    """Export a trained model as ONNX, and hold it against PyTorch.

    The graph takes windows of one size: `images`, `float32 [B, C, H, W]`, normalised with the
    header's mean and std in the network's channel order. It gives `labels`, `int32 [B, H, W]`,
    class indices, and `scores`, `float32 [B, K, H, W]`, both at the size of the input. The file's
    metadata say all that is needed to use it. Models above 2 GiB get their weights in
    `OUT.onnx.data`.

    Args:
        out: The `.onnx` file. It is written as a whole, after it was verified, or not at all.
        checkpoint: Lean weights or a training checkpoint, or a model from `load_model`. It is not
            changed.
        height: Rows in pixels, no multiple of anything. None takes the window of the test.
        width: Columns, likewise.
        batch_size: Images; where the batch is dynamic, the most it is verified with.
        dynamic: What the graph leaves open: some of 'batch', 'height' and 'width', as a list or
            separated by commas; '' for nothing.
        precision: 'fp32', 'fp16', 'bf16' or 'int8'. Softmax, layer norms, sums of scores and what
            overflows stay in float32, and so do inputs and outputs. int8 is for Linear layers
            alone; their ranges are measured on the training images of `data`, or on `images`.
        outputs: 'labels', 'scores' or 'both'.
        include_preprocessing: The graph takes `uint8 [B, H, W, C]` as images are decoded,
            normalises them itself, and `labels` are the user's class ids.
        channel_order: With it, 'rgb' (default) or 'bgr': what the graph is fed.
        opset_version: 18 to 23.
        simplify: Whether onnxslim simplifies the graph.
        verify: Whether ONNX Runtime is compared with PyTorch in float32: at batch 1, 2 and
            `batch_size`, and at another size where it is dynamic.
        images: What to compare on (and to measure magnitudes on): an image, a folder, or a list of
            paths, PIL images or arrays. None takes `data`, or pictures that are made.
        data: A dataset as for training (the YAML file or a dict), whose validation images are
            compared on. mIoU of both is measured on all of them.
        max_drop: By how much mIoU, in percent, may drop on `data`. None takes
            `mmseg_eomt.deploy.agreement.DROPS` of the precision (1 for int8).
        debug: Whether the exporter's own messages are shown.

    Returns:
        Path, metadata and comparisons; they are also printed.

    Raises:
        ImportError: If a package is missing.
        OSError: If the file cannot be written; found out before the export starts.
        ValueError: If an argument or the checkpoint is unfit, or the exported model differs from
            PyTorch by more than `mmseg_eomt.deploy.agreement.LIMITS`.
    """
    check_packages(simplify=simplify)
    from mmseg_eomt.deploy.onnx_file import staged
    from mmseg_eomt.deploy.verify import ExportResult, print_result

    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"out is '{out}': the name of the file must end in .onnx.")
    opset_version = check_opset(opset_version)
    if verify and data is not None and outputs == "labels":
        raise ValueError(
            "outputs is 'labels', but mIoU on `data` takes scores, which are averaged over windows "
            "and resized. Export both, or compare on pictures alone (images, --images)."
        )
    with staged(out) as path:
        model = checkpoint if isinstance(checkpoint, SegmentationModel) else None
        if model is None:
            model = load_model(checkpoint, device="cpu")  # type: ignore[arg-type]
        _check_plain(model)
        metadata = deploy_metadata(
            model.header,
            height=height,
            width=width,
            batch_size=batch_size,
            dynamic=dynamic,
            precision=precision,
            outputs=outputs,
            include_preprocessing=include_preprocessing,
            channel_order=channel_order,
            versions=_versions(),
        )
        if verify and data is not None:
            described(data, model.header)  # before the time that exporting takes
        channels = model.header.in_channels
        pictures = measured = choose_pictures(images, data, channels=channels)
        if precision == "int8":
            measured = calibration_pictures(images, data, channels=channels)
        graph = _graph(
            model.segmentor, metadata, measured, opset_version, simplify=simplify, debug=debug
        )
        _write(path, graph, metadata)
        del graph
        notes = [pictures.note]
        if precision == "int8":
            notes.insert(0, measured.note)
        elif precision == "bf16":
            notes.append("No CPU computes in bfloat16 here: float32 was rounded to it instead.")
        result = ExportResult(out, metadata, notes=tuple(notes))
        if verify:
            result = _verified(path, result, model, pictures, data=data, max_drop=max_drop)
            print_result(result, Console())
            _check(result)
    return result


def _check_plain(model: SegmentationModel) -> None:
    done = getattr(model.segmentor, "optimizations", None)
    dtypes = {parameter.dtype for parameter in model.segmentor.parameters()}
    if done or dtypes != {torch.float32}:
        found = "; ".join(done) if done else ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"The model is not as its file has it ({found}). Export the file, or load it again."
        )


def _versions() -> dict[str, str]:
    tools = ("onnx", "onnxscript", "onnxslim", "onnxruntime")
    found = {}
    for name in tools:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # no onnxslim, or another distribution
            continue
    return {**package_versions(), **found}


def _graph(
    segmentor: nn.Module,
    metadata: DeployMetadata,
    pictures: Pictures,
    opset_version: int,
    *,
    simplify: bool,
    debug: bool,
) -> onnx.ModelProto:
    """The ONNX model in its precision, without metadata."""
    from mmseg_eomt.deploy.exporter import export_graph, simplified
    from mmseg_eomt.deploy.half_precision import convert_precision
    from mmseg_eomt.deploy.int8 import quantize_linears

    model = export_graph(segmentor, metadata, opset_version=opset_version, debug=debug)
    samples = _samples(metadata, pictures)
    if simplify:
        model = simplified(model, samples[:1])
    if metadata.precision == "int8":
        return quantize_linears(model, samples)
    if metadata.precision != "fp32":
        model = convert_precision(model, dtype=metadata.precision, samples=samples)
    return model


def _samples(metadata: DeployMetadata, pictures: Pictures) -> list[dict[str, Any]]:
    """Inputs of the graph by name, of as many images as it takes."""
    from mmseg_eomt.deploy.pictures import graph_input

    batch = 1 if "batch" in metadata.dynamic else metadata.batch_size
    count = None if metadata.precision == "int8" else SAMPLES
    found = pictures.at((metadata.height, metadata.width), count=count)
    groups = [
        [found[(first + index) % len(found)] for index in range(batch)]
        for first in range(0, len(found), batch)
    ]
    return [{metadata.input.name: graph_input(group, metadata)} for group in groups]


def _write(path: Path, model: onnx.ModelProto, metadata: DeployMetadata) -> None:
    import onnx

    from mmseg_eomt.deploy.onnx_file import write_model

    del model.metadata_props[:]
    for key, value in metadata.properties().items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "mmseg_eomt"
    model.producer_version = metadata.versions["mmseg_eomt"]
    write_model(path, model)
    onnx.checker.check_model(str(path), full_check=True)


def _verified(
    path: Path,
    result: ExportResult,
    model: SegmentationModel,
    pictures: Pictures,
    *,
    data: Any,
    max_drop: float | None,
) -> ExportResult:
    """The result with all comparisons that were asked for."""
    from mmseg_eomt.deploy.agreement import DROPS
    from mmseg_eomt.deploy.verify import compare, open_file, plans

    metadata = result.metadata
    runner = open_file(path, metadata)
    comparisons = [
        compare(runner, model.segmentor, metadata, pictures.at(size), batch=batch)
        for batch, size in plans(metadata)
    ]
    miou = None
    if data is not None:
        drop = DROPS[metadata.precision] if max_drop is None else max_drop
        console = Console(stderr=True)
        miou = miou_pair(runner, model, data, max_drop=drop, console=console)
    return dataclasses.replace(result, comparisons=tuple(comparisons), miou=miou)


def _check(result: ExportResult) -> None:
    """Raises if the exported model is another model."""
    if result.failures():
        worst = min(result.failures(), key=lambda item: item.agreement)
        raise ValueError(
            f"The exported model differs from PyTorch: at batch {worst.batch}, {worst.size[0]} x "
            f"{worst.size[1]} pixels {worst.agreement:.4%} of the labels are the same, and scores "
            f"differ by up to {worst.largest or 0:.1e} (the table has the limits). Nothing was "
            "written. Compare on real pictures (--images, --data), or choose a higher precision."
        )
    if result.miou is not None and result.miou.failed:
        raise ValueError(
            f"The exported model loses {result.miou.drop:.2f} mIoU, more than the "
            f"{result.miou.max_drop:g} allowed (max_drop, --max-drop). Nothing was written. Choose "
            "a higher precision, or allow more."
        )


MOST = 16
"""Pictures to compare on, evenly spread over those given."""
MADE = 4
CALIBRATION = 64
"""Pictures that int8 ranges are measured on, likewise."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures at any size.

    Args:
        images: The images; None makes pictures.
        channels: Of the model.
        note: Where they come from, for people.
    """

    images: Sequence[PixelsLike] | None
    channels: int
    note: str

    def at(self, size: tuple[int, int], *, count: int | None = None) -> list[Pixels]:
        """The first `count` pictures, or all, at a size."""
        from mmseg_eomt.deploy.pictures import fitted, made_pictures

        if self.images is None:
            return made_pictures(count or MADE, size, channels=self.channels)
        return [fitted(image, size, channels=self.channels) for image in self.images[:count]]


def choose_pictures(
    images: str | Path | Sequence[PixelsLike] | None, data: Any, *, channels: int
) -> Pictures:
    """Return the pictures to compare on.

    Args:
        images: An image, a folder, or a list of images.
        data: A dataset; its validation images are taken if there is no `images`.
        channels: Of the model.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If the list is empty or the dataset has no validation images.
    """
    if images is None and data is None:
        return Pictures(
            None,
            channels,
            f"Compared on {MADE} made pictures (regions of texture): give real ones with images= "
            "or data= (--images, --data).",
        )
    given, name = _given(images) if images is not None else _of_split(data, "val")
    chosen = _spread(given, MOST)
    return Pictures(chosen, channels, f"Compared on {len(chosen)} pictures of {name}.")


def calibration_pictures(
    images: str | Path | Sequence[PixelsLike] | None, data: Any, *, channels: int
) -> Pictures:
    """Return the pictures that int8 ranges are measured on.

    Args:
        images: As for `choose_pictures`; taken if there is no `data`.
        data: A dataset, whose training images are taken.
        channels: Of the model.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If there are no pictures: ranges of made ones would fit no real one.
    """
    if images is None and data is None:
        raise ValueError(
            "precision is 'int8', whose ranges are measured on pictures: give some of the kind the "
            "model is used on with images= or data= (--images, --data)."
        )
    given, name = _of_split(data, "train") if data is not None else _given(images)
    chosen = _spread(given, CALIBRATION)
    return Pictures(chosen, channels, f"Ranges were measured on {len(chosen)} pictures of {name}.")


def _given(images: str | Path | Sequence[PixelsLike] | None) -> tuple[list[PixelsLike], str]:
    if isinstance(images, (str, Path)):
        return list(find_images(Path(images))), str(images)
    if not images:
        raise ValueError("images is an empty list: give at least one image.")
    return list(images), "the images given"


def _of_split(data: Any, split: str) -> tuple[list[PixelsLike], str]:
    description = load_data(data)
    pairs = [pair for folders in description.folders(split) for pair in find_pairs(folders)]
    name = {"train": "training", "val": "validation"}[split]
    return [pair.image for pair in pairs], f"the {name} images of {description.source}"


def _spread(images: list[PixelsLike], most: int) -> list[PixelsLike]:
    return images[:: max(1, len(images) // most)][:most]
