"""ONNX Runtime in half precision.

It is written into the graph, whose sensitive parts stay in float32; input and output are float32.
"""

backend_config = dict(type="onnxruntime", precision="fp16")
