"""ONNX Runtime in float32."""

backend_config = dict(type="onnxruntime", precision="fp32")
