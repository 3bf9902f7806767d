"""ONNX Runtime, fp32: class scores of one window of 1024x1024."""

_base_ = ["./_base_/scores.py", "./_base_/onnxruntime.py", "./_base_/onnx_static.py"]

onnx_config = dict(input_shape=[1024, 1024])
