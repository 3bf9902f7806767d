"""Layer norm as one operator.

MMDeploy's own symbolic always writes its parts, with the axes of ReduceMean as an attribute: no
valid ONNX from opset 18 on, and until then TensorRT cannot see a layer norm in them.
"""

from __future__ import annotations

from typing import Any

from mmdeploy.core import SYMBOLIC_REWRITER
from mmdeploy.utils import IR
from torch.onnx import symbolic_opset9, symbolic_opset17


@SYMBOLIC_REWRITER.register_symbolic("layer_norm", is_pytorch=True, ir=IR.ONNX)
def layer_norm__onnx(
    g: Any,
    input: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    cudnn_enable: Any,
) -> Any:
    """PyTorch's own symbolics: LayerNormalization from opset 17 on, its parts before."""
    own = symbolic_opset17 if g.opset >= 17 else symbolic_opset9
    return own.layer_norm(g, input, normalized_shape, weight, bias, eps, cudnn_enable)
