"""Convert annotations to a folder dataset: python tools/convert_dataset.py KIND ... --out OUT"""

from mmseg_eomt.commands.convert_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
