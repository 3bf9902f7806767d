"""Using an exported model: `Session("model.onnx").predict(image)`. Needs no PyTorch.

Shape legend: K classes, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_eomt.deploy.merging import WindowScores, label_map, score_map
from mmseg_eomt.deploy.metadata import DeployMetadata, default_size
from mmseg_eomt.deploy.pictures import graph_input
from mmseg_eomt.deploy.runners import Runner, open_runner
from mmseg_eomt.images.painting import check_opacity, paint
from mmseg_eomt.images.reading import PixelsLike, as_pixels
from mmseg_eomt.images.resampling import resize_to_cover
from mmseg_eomt.images.windows import cover, wished_window

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _Plan:
    """How one image is cut."""

    image: Pixels  # [H, W, C] as read
    canvas: Pixels  # [h, w, C], resized as at test
    window: tuple[int, int]
    starts: list[tuple[int, int]]


class Session:
    """An exported model with all that its file says: classes, ids, colours, sizes.

    Images are resized, cut in windows, averaged and brought back to their size as at test, so
    that labels are those of `load_model(...).predict`. Not safe for several threads.

    Args:
        path: A `.onnx` file, or a `.engine` with its `.json`. Or something with `run` and
            `metadata`, see `mmseg_eomt.deploy.runners.Runner`.
        providers: ONNX Runtime's execution providers; None takes CUDA if there is one, else the
            CPU.
        threads: Threads of ONNX Runtime; None takes all cores.
        window_batch: Windows at a time where the model's batch is open. None takes the batch it
            was exported with.

    Attributes:
        metadata: What the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If ONNX Runtime or TensorRT is missing.
        ValueError: If the file does not come from mmseg_eomt, or an argument is out of range.
    """

    def __init__(
        self,
        path: str | Path | Runner,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        window_batch: int | None = None,
    ) -> None:
        if isinstance(path, (str, Path)):
            self._runner = open_runner(path, providers=providers, threads=threads)
            name = str(path)
        else:
            self._runner, name = path, type(path).__name__
        if self._runner.metadata is None:
            raise ValueError(
                f"{name} was not exported by mmseg_eomt: classes and sizes are unknown. Export it "
                "with tools/export.py."
            )
        self.metadata: DeployMetadata = self._runner.metadata
        self.header = self.metadata.model
        self._open = set(self.metadata.dynamic)
        if window_batch is not None and window_batch < 1:
            raise ValueError(f"window_batch is {window_batch}: it must be at least 1, or None.")
        if window_batch not in (None, self.metadata.batch_size) and "batch" not in self._open:
            raise ValueError(
                f"window_batch is {window_batch}, but the model's batch is always "
                f"{self.metadata.batch_size}. Leave it out, or export with a dynamic batch."
            )
        self._batch = window_batch or self.metadata.batch_size
        self._ids = np.asarray(self.header.class_ids)

    @property
    def classes(self) -> dict[int, str]:
        """Class names by the ids that predictions carry."""
        return dict(zip(self.header.class_ids, self.header.classes, strict=True))

    @property
    def palette(self) -> dict[int, tuple[int, int, int]]:
        """RGB colours by the ids that predictions carry."""
        return dict(zip(self.header.class_ids, self.header.palette, strict=True))

    def predict(self, image: PixelsLike) -> NDArray[np.int64]:
        """Predict one image.

        Args:
            image: A path; a PIL image; or an array `uint8 [H, W, 3]` in RGB order, or `[H, W]`
                grey.

        Returns:
            Class ids `int64 [H, W]` at the size of the image. A path and a PIL image are turned by
            their EXIF orientation first.

        Raises:
            FileNotFoundError: If the path does not exist.
            ValueError: If it is no such image, or the model has one size and its windows another.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[PixelsLike]) -> list[NDArray[np.int64]]:
        """Predict images of any sizes; windows of one size share batches.

        Args:
            images: As for `predict`.

        Returns:
            Class ids `int64 [H, W]` of each image.
        """
        plans = [self._plan(image) for image in images]
        needed = ["labels" if self._direct(plan) else "scores" for plan in plans]
        results = []
        for plan, name, outputs in zip(plans, needed, self._run(plans, needed), strict=True):
            if name == "labels":
                labels = outputs[0]
                is_id = self.metadata.label_values == "id"
                results.append(labels.astype(np.int64) if is_id else self._ids[labels])
            else:
                labels = label_map(self._windows(plan, outputs), _size(plan.image))
                results.append(self._ids[labels])
        return results

    def scores(self, image: PixelsLike) -> NDArray[np.float32]:
        """Scores of one image, at its size.

        Args:
            image: As for `predict`.

        Returns:
            `float32 [K, H, W]`: sums over queries of mask times class probability, in the order of
            `classes`.
        """
        plan = self._plan(image)
        (outputs,) = self._run([plan], ["scores"])
        return score_map(self._windows(plan, outputs), _size(plan.image))

    def overlay(
        self, image: PixelsLike, mask: NDArray[Any] | None = None, *, opacity: float = 0.5
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
        pixels = as_pixels(image, channels=self.header.in_channels)
        ids = self.predict(image) if mask is None else mask
        return paint(pixels, ids, self.palette, opacity=opacity)

    def _plan(self, image: PixelsLike) -> _Plan:
        pixels = as_pixels(image, channels=self.header.in_channels)
        header, exported = self.header, (self.metadata.height, self.metadata.width)
        # A model that was exported for another size than the test's is tested at its own.
        fixed_windows = self.metadata.windows and not {"height", "width"} & self._open
        own = fixed_windows and exported != default_size(header)
        test_size = exported if own else header.test_size
        canvas = pixels if test_size is None else resize_to_cover(pixels, test_size)
        size = _size(canvas)
        test_cfg = {"mode": header.test_mode, "window_size": header.window_size}
        wish = exported if own else wished_window(test_cfg, size)
        window, starts = cover(size, wish)
        for axis, found, fixed in zip(("height", "width"), window, exported, strict=True):
            if found != fixed and axis not in self._open:
                raise ValueError(
                    f"The image is {pixels.shape[0]} x {pixels.shape[1]} pixels and would be cut "
                    f"into windows of {window[0]} x {window[1]}, but the {axis} of the model is "
                    f"always {fixed}. Export it with --dynamic batch,height,width."
                )
        return _Plan(pixels, canvas, window, starts)

    def _direct(self, plan: _Plan) -> bool:
        """Whether the model's own label map is the result, with nothing to average or resize."""
        alone = len(plan.starts) == 1 and _size(plan.image) == _size(plan.canvas)
        if "labels" in self.metadata.outputs and alone:
            return True
        if "scores" not in self.metadata.outputs:
            raise ValueError(
                f"An image of {plan.image.shape[0]} x {plan.image.shape[1]} pixels takes "
                f"{len(plan.starts)} windows of {plan.window[0]} x {plan.window[1]} and a resize: "
                "scores are averaged and resized, and this model gives labels alone. Export it "
                "with --outputs both."
            )
        return False

    def _run(self, plans: Sequence[_Plan], names: Sequence[str]) -> list[list[NDArray[Any]]]:
        """The output of a name for each window of each image."""
        for name in set(names) - set(self.metadata.outputs):
            raise ValueError(
                f"The model gives {', '.join(self.metadata.outputs)}, no {name}. Export it with "
                "--outputs both."
            )
        found: list[list[NDArray[Any]]] = [[] for _ in plans]
        groups: dict[tuple[int, int], list[tuple[int, Pixels]]] = {}
        for index, plan in enumerate(plans):
            height, width = plan.window
            groups.setdefault(plan.window, []).extend(
                (index, plan.canvas[top : top + height, left : left + width])
                for top, left in plan.starts
            )
        for group in groups.values():
            for first in range(0, len(group), self._batch):
                part = group[first : first + self._batch]
                pixels = [window for _, window in part]
                if "batch" not in self._open:
                    pixels += [pixels[-1]] * (self._batch - len(pixels))
                outputs = self._runner.run(graph_input(pixels, self.metadata))
                for row, (index, _) in enumerate(part):
                    # A copy, so that the other outputs of the batch can go.
                    found[index].append(outputs[names[index]][row].copy())
        return found

    def _windows(self, plan: _Plan, scores: list[NDArray[Any]]) -> WindowScores:
        return WindowScores(scores, plan.starts, _size(plan.canvas))


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]
