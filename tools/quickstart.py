"""From nothing to a deployed model: make a dataset, train, test, predict, export, check it all."""

from mmseg_eomt.commands.quickstart import main

if __name__ == "__main__":
    raise SystemExit(main())
