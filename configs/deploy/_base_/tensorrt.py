"""TensorRT in float32. A file that takes this one names the shapes."""

backend_config = dict(type="tensorrt", common_config=dict(fp16_mode=False))
