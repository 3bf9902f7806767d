"""Pretrain a backbone: python tools/pretrain.py configs/dinov2_vits14_small.py --data FOLDER"""

from mmseg_eomt.commands.pretrain import main

if __name__ == "__main__":
    raise SystemExit(main())
