"""ONNX Runtime, fp16: class scores of any number of windows of 512x512."""

_base_ = ["./_base_/scores.py", "./_base_/onnxruntime-fp16.py", "./_base_/onnx_dynamic-batch.py"]

onnx_config = dict(input_shape=[512, 512])
