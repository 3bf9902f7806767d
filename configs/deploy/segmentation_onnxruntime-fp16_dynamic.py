"""ONNX Runtime, fp16: class scores of any number of images of any size."""

_base_ = ["./_base_/scores.py", "./_base_/onnxruntime-fp16.py", "./_base_/onnx_dynamic.py"]
