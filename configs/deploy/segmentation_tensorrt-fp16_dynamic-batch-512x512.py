"""TensorRT, fp16: class scores of up to 8 windows of 512x512."""

_base_ = ["./_base_/scores.py", "./_base_/tensorrt-fp16.py", "./_base_/onnx_dynamic-batch.py"]

onnx_config = dict(input_shape=[512, 512])
backend_config = dict(
    model_inputs=[
        dict(
            input_shapes=dict(
                input=dict(
                    min_shape=[1, 3, 512, 512],
                    opt_shape=[1, 3, 512, 512],
                    max_shape=[8, 3, 512, 512],
                )
            )
        )
    ],
)
