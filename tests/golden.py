"""A run of 30 steps whose losses are known: `golden_config` and the numbers in golden_losses.txt.

    python -m tests.golden OUT            one process; prints the losses
    tools/dist_train.sh OUT/golden.py 2   the same run by two

After a change that is meant to change the numbers:

    python -m tests.golden OUT > tests/golden_losses.txt
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from mmseg_eomt.config_files import config_path

STEPS = 30
COMMITTED = Path(__file__).with_name("golden_losses.txt")
MAKE_DATASET = Path(__file__).parents[1] / "tools" / "make_dataset.py"

CONFIG = """
_base_ = [{base!r}]
train_cfg = dict(max_iters={steps}, val_interval={steps}, global_batch_size=4)
auto_scale_lr = dict(enable=False)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
optim_wrapper = dict(precision="fp32")
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1000, save_best=None))
"""


def golden_config(folder: Path) -> tuple[Path, Path]:
    """Writes the config and the data of the run; returns their paths."""
    data = folder / "scenes"
    make = runpy.run_path(str(MAKE_DATASET))["main"]
    make([str(data), "--images", "16", "--val", "2", "--size", "96x96", "--seed", "7"])
    config = folder / "golden.py"
    base = config_path("eomt/tiny_quickstart.py")
    config.write_text(CONFIG.format(base=base, steps=STEPS), encoding="utf-8")
    return config, data / "data.yaml"


def read_losses(run: Path) -> list[float]:
    """The total loss of every step, as the run logged it."""
    (log,) = run.glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def committed_losses() -> list[float]:
    """The losses that the run had when it was last meant to change."""
    return [float(line) for line in COMMITTED.read_text().split()]


def main(out: str) -> None:
    """Runs it in this process and prints the losses."""
    import contextlib

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    train = runpy.run_path(str(MAKE_DATASET.with_name("train.py")))["main"]
    with contextlib.redirect_stdout(sys.stderr):
        config, data = golden_config(folder)
        code = train([str(config), "--data", str(data), "--work-dir", str(folder / "run")])
    if code:
        sys.exit(code)
    print("\n".join(f"{loss:.9g}" for loss in read_losses(folder / "run")))


if __name__ == "__main__":
    main(sys.argv[1])
