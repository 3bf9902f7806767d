"""Test weights: python tools/test.py CONFIG CHECKPOINT [--out DIR] [--show-dir DIR] [--tta]"""

from mmseg_eomt.commands.test import main

if __name__ == "__main__":
    raise SystemExit(main())
