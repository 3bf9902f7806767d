"""A segmentor as an ONNX graph.

Shape legend: B images, Q queries, K classes, C channels, H/W pixels.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.onnx_graph import Sample, lift_constants, session_of
from mmseg_eomt.models.joint_attention import fold_weights


class DeployGraph(nn.Module):
    """A segmentor for one window of a size, with what an exporter needs settled beforehand.

    Works on a copy: the segmentor stays as it is. In the copy layer scales are folded, biases
    joined, the channel order is that of the input, and position tables are constants where the
    size is.

    Args:
        segmentor (nn.Module): In float32, as `load_model` builds it.
        metadata (DeployMetadata): Says sizes, input and outputs.
    """

    mean: Tensor
    std: Tensor
    class_ids: Tensor

    def __init__(self, segmentor: nn.Module, metadata: DeployMetadata) -> None:
        super().__init__()
        self.segmentor: Any = copy.deepcopy(segmentor).cpu().float().eval().requires_grad_(False)
        self.spec, self.outputs = metadata.input, metadata.outputs
        backbone: Any = self.segmentor.backbone
        self.patch: int = backbone.patch_size
        self.fixed = not {"height", "width"} & set(metadata.dynamic)
        grid = (-(-metadata.height // self.patch), -(-metadata.width // self.patch))
        backbone.prepare_export(grid if self.fixed else None)
        fold_weights(backbone.vit)
        header = metadata.model
        mean, std = (torch.tensor(values) for values in (header.mean, header.std))
        if reorders_channels(metadata):
            # The same as reordering each image, once.
            projection = backbone.vit.patch_embed.proj
            projection.weight = nn.Parameter(projection.weight.flip(1), requires_grad=False)
            mean, std = mean.flip(0), std.flip(0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.num_classes = header.num_classes
        self.ids = metadata.label_values == "id"
        ids = torch.tensor(header.class_ids, dtype=torch.int32)
        self.register_buffer("class_ids", ids[:, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Label map ``int32 [B, H, W]`` and scores ``float32 [B, K, H, W]``, those asked for.

        Args:
            images (Tensor): ``[B, C, H, W]`` or ``[B, H, W, C]``, as the metadata says.
        """
        if self.spec.dtype == "uint8":
            images = (images.float() - self.mean).div(self.std).permute(0, 3, 1, 2)
        batch, _, height, width = images.shape
        patch = self.patch
        # (A negative number modulo the patch size, as in the backbone, differs in ONNX.)
        below, right = ((side + patch - 1) // patch * patch - side for side in (height, width))
        if not self.fixed or below or right:
            images = F.pad(images, (0, right, 0, below))
        masks, classes = self.segmentor.network(images)
        # Patches span the padded input, `scale` pixels each way for a pixel of the masks.
        scale = patch / 2 ** len(self.segmentor.decode_head.upscale)
        if scale != 1:
            masks = F.interpolate(masks, scale_factor=scale, mode="bilinear", align_corners=False)
        masks = masks[..., :height, :width].sigmoid()
        probabilities = classes.softmax(-1)[..., :-1]  # [B, Q, K], without "no object"
        # Planes of classes: the long axis last suits the product, and is what `scores` has.
        scores = probabilities.transpose(1, 2) @ masks.flatten(2)  # [B, K, H * W]
        results = {}
        if "labels" in self.outputs:
            best = scores.argmax(1)
            best = F.embedding(best, self.class_ids) if self.ids else best.int()
            results["labels"] = best.view(batch, height, width)
        if "scores" in self.outputs:
            results["scores"] = scores.view(batch, self.num_classes, height, width)
        return tuple(results[name] for name in self.outputs)


def reorders_channels(metadata: DeployMetadata) -> bool:
    """Whether the graph is fed another channel order than its network takes."""
    header = metadata.model
    own = "rgb" if header.bgr_to_rgb else "bgr"
    return header.in_channels == 3 and metadata.input.channel_order != own


def example_input(metadata: DeployMetadata) -> Tensor:
    """Zeros to trace with. Where a size is open, one that nothing else could be mistaken for."""
    channels, patch = metadata.model.in_channels, metadata.model.patch_size
    batch = 2 if "batch" in metadata.dynamic else metadata.batch_size
    height = 5 * patch - 1 if "height" in metadata.dynamic else metadata.height
    width = 7 * patch - 3 if "width" in metadata.dynamic else metadata.width
    if metadata.input.layout == "NHWC":
        return torch.zeros(batch, height, width, channels, dtype=torch.uint8)
    return torch.zeros(batch, channels, height, width)


def dynamic_axes(metadata: DeployMetadata) -> dict[int, str]:
    """Names of the open axes of the input, by position."""
    order = {"NCHW": ("batch", "", "height", "width"), "NHWC": ("batch", "height", "width", "")}
    names = order[metadata.input.layout]
    return {axis: name for axis, name in enumerate(names) if name in metadata.dynamic}


_LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_graph(
    segmentor: nn.Module, metadata: DeployMetadata, *, opset_version: int, debug: bool = False
) -> onnx.ModelProto:
    """Export a segmentor with `torch.onnx`.

    Args:
        segmentor: In float32. It is not changed.
        metadata: Says sizes, input and outputs; it is not written yet.
        opset_version: See `request.OPSETS`.
        debug: Whether the exporter may talk.

    Returns:
        A float32 model of standard operators, its constants stored as initialisers.
    """
    graph = DeployGraph(segmentor, metadata).eval()
    with torch.no_grad(), contextlib.nullcontext() if debug else _quiet():
        program = torch.onnx.export(
            graph,
            (example_input(metadata),),
            input_names=[metadata.input.name],
            output_names=list(metadata.outputs),
            dynamic_shapes=(dynamic_axes(metadata),),
            opset_version=opset_version,
            dynamo=True,
            external_data=False,
            verbose=debug,
        )
    assert program is not None, "without a file name the exporter returns the program"
    model: onnx.ModelProto = program.model_proto
    lift_constants(model)
    # Where in this package each node came from: of no use to a user, and it names their folders.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    return model


def simplified(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
    """Simplify with onnxslim, and hold the result against the model on samples.

    Args:
        model: It is not changed.
        samples: Inputs by name.

    Raises:
        ValueError: If the results differ by more than float32 rounding.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        slim: onnx.ModelProto = onnxslim.slim(copy)
    lift_constants(slim)
    names = [output.name for output in model.graph.output]
    with session_of(model) as before, session_of(slim) as after:
        for sample in samples:
            pairs = zip(before.run(names, sample), after.run(names, sample), strict=True)
            for name, (expected, found) in zip(names, pairs, strict=True):
                if not _same(expected, found):
                    raise ValueError(
                        f"onnxslim changed the output {name!r} of this model. Export it with "
                        "simplify=False (--no-simplify), and please report it."
                    )
    return slim


def _same(expected: np.ndarray, found: np.ndarray) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if np.issubdtype(expected.dtype, np.integer):
        # A tie between classes may be decided by rounding.
        return float((expected == found).mean()) >= 0.9999
    return np.allclose(expected, found, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say to themselves."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
