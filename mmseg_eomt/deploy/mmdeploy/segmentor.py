"""The graph of an EoMT: what comes out at the size of the input.

Shape legend: B images, Q queries, K classes, s mask resolution, H/W pixels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdeploy.core import FUNCTION_REWRITER
from mmdeploy.utils import IR, get_codebase_config
from torch import Tensor


@FUNCTION_REWRITER.register_rewriter(
    "mmseg_eomt.models.eomt_segmentor.EoMTSegmentor.forward", ir=IR.ONNX
)
def eomt_segmentor__forward(
    self: Any, inputs: Tensor, data_samples: Any = None, mode: str = "predict", **kwargs: Any
) -> Tensor:
    """Class scores or, with ``codebase_config.with_argmax``, labels of whole inputs.

    Args:
        inputs (Tensor): ``[B, C, H, W]``, normalised. Any size: what is no multiple of the patch
            is padded inside.
        data_samples (list, optional): Not used.
        mode (str): Not used.

    Returns:
        Tensor: Scores ``float32 [B, K, H, W]`` or labels ``int32 [B, 1, H, W]``.
    """
    ctx = FUNCTION_REWRITER.get_context()
    scores: Tensor = self.predict(inputs, data_samples)
    if get_codebase_config(ctx.cfg).get("with_argmax", True):
        # TensorRT has no 64-bit label maps to offer at the speed of these.
        return scores.argmax(dim=1, keepdim=True).int()
    return scores


@FUNCTION_REWRITER.register_rewriter(
    "mmseg_eomt.models.eomt_segmentor.EoMTSegmentor.predict", ir=IR.ONNX
)
def eomt_segmentor__predict(self: Any, inputs: Tensor, data_samples: Any = None) -> Tensor:
    """Scores ``float32 [B, K, H, W]`` of ``inputs [B, C, H, W]``, each seen as one window."""
    height, width = inputs.shape[-2:]
    patch = self.backbone.patch_size
    # (A negative number modulo the patch size differs in ONNX.)
    below, right = ((side + patch - 1) // patch * patch - side for side in (height, width))
    # Always, as an image of another size may need it; where none is needed it adds nothing.
    inputs = F.pad(inputs, (0, right, 0, below))
    masks, classes = self.network(inputs)  # [B, Q, s_h, s_w], [B, Q, K + 1]
    # A scale and no size: the same in every graph, however sizes are given.
    factor = patch / 2 ** len(self.decode_head.upscale)
    masks = F.interpolate(masks, scale_factor=factor, mode="bilinear", align_corners=False)
    masks = masks[..., :height, :width].sigmoid()
    probabilities = classes.softmax(dim=-1)[..., :-1].transpose(1, 2)  # [B, K, Q]
    scores: Tensor = probabilities @ masks.flatten(2)
    return scores.reshape(*scores.shape[:2], height, width)
