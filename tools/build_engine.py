"""Build a TensorRT engine: python tools/build_engine.py MODEL.onnx --out MODEL.engine"""

from mmseg_eomt.commands.build_engine import main

if __name__ == "__main__":
    raise SystemExit(main())
