"""ONNX Runtime, fp32: label maps of one window of 512x512."""

_base_ = ["./_base_/labels.py", "./_base_/onnxruntime.py", "./_base_/onnx_static.py"]

onnx_config = dict(input_shape=[512, 512])
