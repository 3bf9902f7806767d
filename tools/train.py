"""Train a config: python tools/train.py configs/eomt/dinov3_vits16_folder.py --data DATA.yaml"""

from mmseg_eomt.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
