"""Export a trained model: python tools/export.py CHECKPOINT --out model.onnx"""

from mmseg_eomt.commands.export import main

if __name__ == "__main__":
    raise SystemExit(main())
