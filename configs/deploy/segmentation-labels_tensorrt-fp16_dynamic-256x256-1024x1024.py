"""TensorRT, fp16: label maps of up to 8 images from 256 to 1024 pixels a side."""

_base_ = ["./_base_/labels.py", "./_base_/tensorrt-fp16.py", "./_base_/onnx_dynamic.py"]

backend_config = dict(
    model_inputs=[
        dict(
            input_shapes=dict(
                input=dict(
                    min_shape=[1, 3, 256, 256],
                    opt_shape=[1, 3, 512, 512],
                    max_shape=[8, 3, 1024, 1024],
                )
            )
        )
    ],
)
