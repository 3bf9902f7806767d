"""The ONNX file, in the words of MMDeploy: one window of one size. A file that takes this one names it."""

onnx_config = dict(
    type="onnx",
    export_params=True,
    keep_initializers_as_inputs=False,
    # The first with LayerNormalization, which TensorRT keeps in float32.
    opset_version=17,
    save_file="end2end.onnx",
    input_names=["input"],
    output_names=["output"],
    input_shape=None,
    # Needs MMDeploy's own compiled library.
    optimize=False,
)
