"""Check a dataset: python tools/check_dataset.py DATA.yaml [--json FILE] [--html FILE]"""

from mmseg_eomt.commands.check_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
