"""mIoU of an exported model: python tools/test_deployed.py MODEL.onnx --data DATA.yaml"""

from mmseg_eomt.commands.test_deployed import main

if __name__ == "__main__":
    raise SystemExit(main())
