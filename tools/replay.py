"""Run a captured step again: python tools/replay.py CAPTURE"""

from mmseg_eomt.commands.replay import main

if __name__ == "__main__":
    raise SystemExit(main())
