"""Small ONNX graphs with the parts of a ViT that the passes treat differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

# One attention block with rotary positions, an MLP, mask and class predictions; the number of
# pictures B is open. N = 16 patches of 4x4, C = 8 channels, one head, Q = 2 queries, K = 3 classes.
BLOCK = """
<ir_version: 8, opset_import: ["" : {opset}]>
vit (float[B,3,16,16] images) => (int32[B,16,16] labels, float[B,3,16,16] scores)
<int64[3] to_tokens = {{0, 8, 16}}, int64[4] to_grid = {{0, 2, 4, 4}}, int64[1] three = {{3}},
 int64[1] zero = {{0}}, int64[1] last = {{2}}, float begin = {{0.0}}, float step = {{1.0}},
 float root = {{1.41421354}}, float half = {{0.5}}, float one = {{1.0}}, int64[1] minus = {{-1}},
 float[4] sizes = {{1.0, 1.0, 4.0, 4.0}}>
{{
    centred = Sub(images, mean)
    pixels = Div(centred, deviation)
    patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (pixels, patch_weight, patch_bias)
    flat = Reshape(patches, to_tokens)
    tokens = Transpose <perm = [0, 2, 1]> (flat)
    shape = Shape <start = 1, end = 2> (tokens)
    count = Squeeze(shape)
    end = Cast <to = 1> (count)
    places = Range(begin, end, step)
    column = Unsqueeze(places, minus)
    angles = Mul(column, frequencies)
    sine = Sin(angles)
    cosine = Cos(angles)
    normed = LayerNormalization <axis = -1> (tokens, norm_weight, norm_bias)
    query = MatMul(normed, query_weight)
    key = MatMul(normed, key_weight)
    value = MatMul(normed, value_weight)
    turned = Mul(query, cosine)
    swapped = Neg(query)
    aside = Mul(swapped, sine)
    rotated = Add(turned, aside)
    keys = Transpose <perm = [0, 2, 1]> (key)
    products = MatMul(rotated, keys)
    attention = Softmax <axis = -1> (products)
    mixed = MatMul(attention, value)
    projected = MatMul(mixed, output_weight)
    biased = Add(projected, output_bias)
    residual = Add(tokens, biased)
    normed2 = LayerNormalization <axis = -1> (residual, norm2_weight, norm2_bias)
    hidden = MatMul(normed2, up_weight)
    scaled = Div(hidden, root)
    error = Erf(scaled)
    raised = Add(error, one)
    share = Mul(raised, half)
    active = Mul(hidden, share)
    down = MatMul(active, down_weight)
    residual2 = Add(residual, down)
    features = LayerNormalization <axis = -1> (residual2, norm2_weight, norm2_bias)
    queries = Slice(features, zero, last, one_axis)
    columns = Transpose <perm = [0, 2, 1]> (features)
    mask = MatMul(queries, columns)
    grid = Reshape(mask, to_grid)
    large = Resize <mode = "linear"> (grid, , sizes)
    likely = Sigmoid(large)
    classes = MatMul(queries, class_weight)
    named = Add(classes, class_bias)
    chances = Softmax <axis = -1> (named)
    kept = Slice(chances, zero, three, last)
    scores = Einsum <equation = "bqk,bqhw->bkhw"> (kept, likely)
    best = ArgMax <axis = 1, keepdims = 0> (scores)
    labels = Cast <to = 6> (best)
}}
"""

SHAPES = {
    "mean": (1, 3, 1, 1),
    "deviation": (1, 3, 1, 1),
    "patch_weight": (8, 3, 4, 4),
    "patch_bias": (8,),
    "frequencies": (1, 8),
    "norm_weight": (8,),
    "norm_bias": (8,),
    "query_weight": (8, 8),
    "key_weight": (8, 8),
    "value_weight": (8, 8),
    "output_weight": (8, 8),
    "output_bias": (8,),
    "norm2_weight": (8,),
    "norm2_bias": (8,),
    "up_weight": (8, 32),
    "down_weight": (32, 8),
    "class_weight": (8, 4),
    "class_bias": (4,),
}


def block(*, opset: int = 18, **weights: NDArray[Any]) -> onnx.ModelProto:
    """The graph with random weights, some of them given."""
    model = parser.parse_model(BLOCK.format(opset=opset))
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape) / np.sqrt(shape[0])
        if name == "deviation":
            array = np.abs(array) + 1
        array = weights.get(name, array)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    axis = numpy_helper.from_array(np.array([1]), "one_axis")
    model.graph.initializer.append(axis)
    onnx.checker.check_model(model, full_check=True)
    return model


def pictures(*, batch: int = 2, seed: int = 1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {"images": rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)}
