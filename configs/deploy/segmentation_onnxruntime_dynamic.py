"""ONNX Runtime, fp32: class scores of any number of images of any size."""

_base_ = ["./_base_/scores.py", "./_base_/onnxruntime.py", "./_base_/onnx_dynamic.py"]
