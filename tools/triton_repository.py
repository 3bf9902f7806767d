"""Serve an exported model with Triton: python tools/triton_repository.py MODEL.onnx REPOSITORY"""

from mmseg_eomt.commands.triton_repository import main

if __name__ == "__main__":
    raise SystemExit(main())
