"""Predict images: python tools/predict.py MODEL IMAGE_OR_FOLDER --out DIR"""

from mmseg_eomt.commands.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
