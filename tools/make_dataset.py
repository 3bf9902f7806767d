"""Makes a small segmentation dataset of procedural scenes, to try everything without a download."""

from mmseg_eomt.commands.make_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
