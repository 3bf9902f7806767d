"""Convert checkpoints: python tools/convert_checkpoint.py SRC OUT [--to mmseg|hf]"""

from mmseg_eomt.commands.convert_checkpoint import main

if __name__ == "__main__":
    raise SystemExit(main())
