"""ONNX Runtime, fp32: label maps of any number of images of any size."""

_base_ = ["./_base_/labels.py", "./_base_/onnxruntime.py", "./_base_/onnx_dynamic.py"]
