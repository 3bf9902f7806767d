"""TensorRT, fp16: class scores of one window of 1024x1024."""

_base_ = ["./_base_/scores.py", "./_base_/tensorrt-fp16.py", "./_base_/onnx_static.py"]

onnx_config = dict(input_shape=[1024, 1024])
backend_config = dict(
    model_inputs=[
        dict(
            input_shapes=dict(
                input=dict(
                    min_shape=[1, 3, 1024, 1024],
                    opt_shape=[1, 3, 1024, 1024],
                    max_shape=[1, 3, 1024, 1024],
                )
            )
        )
    ],
)
