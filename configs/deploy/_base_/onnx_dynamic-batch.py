"""Any number of images of one size. A file that takes this one names the size."""

_base_ = "./onnx_static.py"

onnx_config = dict(dynamic_axes=dict(input={0: "batch"}, output={0: "batch"}))
