"""The test pipeline in the words of MMDeploy's SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ANY_LENGTH = 2**20
"""Of the long side: no image has one, so that the short side alone decides."""
META_KEYS = ("img_shape", "pad_shape", "ori_shape", "img_norm_cfg", "scale_factor")


def sdk_steps(model_cfg: Any, *, fixed: Sequence[int] | None) -> list[dict[str, Any]]:
    """Steps of the SDK that come closest to the test pipeline of an EoMT.

    The SDK knows no windows: it runs the graph once, on the whole image. For a static graph the
    image is stretched to its size; for another its short side becomes the model's. It resizes
    without antialiasing.

    Args:
        model_cfg (Config): With ``test_pipeline`` and ``model.data_preprocessor``.
        fixed (Sequence[int], optional): (width, height) of a static graph.

    Raises:
        ValueError: If the pipeline's resize cannot be said in the SDK's words.
    """
    steps: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}]
    if fixed is not None:
        steps.append({"type": "Resize", "size": [int(s) for s in fixed], "keep_ratio": False})
    else:
        steps += _resize_steps(model_cfg.test_pipeline)
    preprocessor = model_cfg.model.data_preprocessor
    channels = model_cfg.model.backbone.get("in_channels", 3)
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    steps += [
        {
            "type": "Normalize",
            "mean": [0.0] * channels if mean is None else list(mean),
            "std": [1.0] * channels if std is None else list(std),
            "to_rgb": bool(preprocessor.get("bgr_to_rgb", False)),
        },
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"], "meta_keys": list(META_KEYS)},
    ]
    return steps


def _resize_steps(pipeline: Sequence[Any]) -> list[dict[str, Any]]:
    for step in pipeline:
        kind = str(step["type"]).rsplit(".", 1)[-1]
        if kind == "ResizeShortSide":
            size = step["size"]
            height, width = (size, size) if isinstance(size, int) else size
            if height != width:
                raise ValueError(
                    f"test_pipeline: ResizeShortSide covers {height}x{width} (height x width), "
                    "which the SDK of MMDeploy cannot do with any image: take a static deploy "
                    f"config with onnx_config.input_shape=[{width}, {height}]."
                )
            return [{"type": "Resize", "size": [ANY_LENGTH, height], "keep_ratio": True}]
        if kind == "Resize":
            size = step.get("scale") or step.get("size")
            ratio = bool(step.get("keep_ratio", False))
            return [{"type": "Resize", "size": [int(s) for s in size], "keep_ratio": ratio}]
    return []
