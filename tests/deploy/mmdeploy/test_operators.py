"""Operators that replace MMDeploy's, and the wrong results that they replace."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from mmdeploy.core import RewriterContext
from mmdeploy.pytorch.functions.multi_head_attention_forward import (
    scaled_dot_product_attention__default,
)
from mmdeploy.pytorch.symbolics.layer_norm import layer_norm__default
from mmdeploy.utils import IR
from mmengine.config import Config
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args

import mmseg_eomt.deploy.mmdeploy  # noqa: F401  (registers)
from mmseg_eomt.deploy.mmdeploy.rewriters import scaled_dot_product_attention__onnx

PLAN = Config(
    {
        "onnx_config": {"type": "onnx", "opset_version": 17},
        "backend_config": {"type": "onnxruntime"},
        "codebase_config": {"type": "mmseg", "task": "Segmentation"},
    }
)


class Calls(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def export(function: Callable[..., Tensor], *inputs: Tensor, opset: int = 17) -> onnx.ModelProto:
    """Export as MMDeploy does: inside its rewriters, by tracing."""
    buffer = io.BytesIO()
    names = [f"x{index}" for index in range(len(inputs))]
    with RewriterContext(PLAN, "onnxruntime", IR.ONNX, opset=opset), torch.no_grad():
        torch.onnx.export(Calls(function), inputs, buffer, input_names=names, opset_version=opset)
    return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, *inputs: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    feeds = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
    result: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    return result


@pytest.fixture
def heads() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, 3, tokens, 8) for tokens in (5, 7, 7))  # type: ignore[return-value]


@pytest.mark.parametrize("case", ["plain", "scale", "boolean", "added", "causal", "shared heads"])
def test_exported_attention_is_pytorchs(case: str, heads: tuple[Tensor, Tensor, Tensor]) -> None:
    arguments: dict[str, Any] = {
        "plain": {},
        "scale": {"scale": 0.25},
        "boolean": {"attn_mask": torch.rand(2, 1, 5, 7) > 0.3},
        "added": {"attn_mask": torch.randn(2, 1, 5, 7)},
        "causal": {"is_causal": True},
        "shared heads": {"enable_gqa": True},
    }[case]
    query, key, value = heads
    if case == "shared heads":
        key, value = key[:, :1], value[:, :1]
    expected = F.scaled_dot_product_attention(query, key, value, **arguments).numpy()
    model = export(
        lambda *inputs: F.scaled_dot_product_attention(*inputs, **arguments), query, key, value
    )
    assert "Dropout" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, query, key, value), expected, atol=1e-6)


def test_mmdeploys_attention_divides_by_an_explicit_scale(
    heads: tuple[Tensor, Tensor, Tensor],
) -> None:
    expected = F.scaled_dot_product_attention(*heads, scale=0.25)
    wrong = scaled_dot_product_attention__default(*heads, scale=0.25)
    assert (wrong - expected).abs().max() > 0.3
    ours = scaled_dot_product_attention__onnx(*heads, scale=0.25)
    torch.testing.assert_close(ours, expected)


def test_mmdeploys_attention_takes_no_boolean_mask(heads: tuple[Tensor, Tensor, Tensor]) -> None:
    mask = torch.rand(2, 1, 5, 7) > 0.3
    with pytest.raises(RuntimeError, match="ambiguous"):
        scaled_dot_product_attention__default(*heads, attn_mask=mask)


def test_mmdeploys_attention_writes_dropout_in_training(
    heads: tuple[Tensor, Tensor, Tensor],
) -> None:
    buffer = io.BytesIO()
    torch.onnx.export(
        Calls(scaled_dot_product_attention__default), heads, buffer, opset_version=17, dynamo=False
    )
    model = onnx.load_from_string(buffer.getvalue())
    (dropout,) = [node for node in model.graph.node if node.op_type == "Dropout"]
    stored = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant"
    }
    assert bool(stored[dropout.input[2]]) is True  # its third input: training mode


@pytest.mark.parametrize("opset", [17, 18])
def test_layer_norm_is_one_valid_operator(opset: int) -> None:
    norm, tokens = nn.LayerNorm(8), torch.randn(2, 5, 8)
    nn.init.normal_(norm.weight)
    model = export(norm, tokens, opset=opset)
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]
    np.testing.assert_allclose(run(model, tokens), norm(tokens).detach().numpy(), atol=1e-6)


def test_mmdeploys_layer_norm_is_invalid_from_opset_18() -> None:
    symbolic = parse_args("v", "is", "v", "v", "f", "i")(layer_norm__default)
    torch.onnx.register_custom_op_symbolic("aten::layer_norm", symbolic, 18)
    try:
        buffer = io.BytesIO()
        tokens = torch.randn(2, 5, 8)
        torch.onnx.export(nn.LayerNorm(8), tokens, buffer, opset_version=18, dynamo=False)
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::layer_norm", 18)
    model = onnx.load_from_string(buffer.getvalue())
    assert "ReduceMean" in {node.op_type for node in model.graph.node}
    with pytest.raises(Exception, match="axes"):
        run(model, tokens)
