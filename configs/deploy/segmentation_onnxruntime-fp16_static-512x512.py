"""ONNX Runtime, fp16: class scores of one window of 512x512."""

_base_ = ["./_base_/scores.py", "./_base_/onnxruntime-fp16.py", "./_base_/onnx_static.py"]

onnx_config = dict(input_shape=[512, 512])
