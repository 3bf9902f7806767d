"""Predict images on a Triton server: python tools/triton_predict.py NAME IMAGES --out DIR"""

from mmseg_eomt.commands.triton_predict import main

if __name__ == "__main__":
    raise SystemExit(main())
