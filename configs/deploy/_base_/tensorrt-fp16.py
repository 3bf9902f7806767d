"""TensorRT in half precision.

It is written into the graph, whose sensitive parts stay in float32, and the network is strongly
typed: TensorRT 11 knows no other kind. Input and output are float32.
"""

backend_config = dict(type="tensorrt", common_config=dict(fp16_mode=True))
