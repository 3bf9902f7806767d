"""Any number of images of any size; position tables are computed in the graph."""

_base_ = "./onnx_static.py"

onnx_config = dict(
    dynamic_axes=dict(
        input={0: "batch", 2: "height", 3: "width"},
        output={0: "batch", 2: "height", 3: "width"},
    ),
)
