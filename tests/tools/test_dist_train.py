"""tools/dist_train.sh as users run it: a process is killed, and nothing but the log shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.apis.tiny import ARCH, make_data
from tests.engine.elastic.agent import differences
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]
STEPS = 30
LIMIT = 300.0


def write_config(folder: Path) -> None:
    (folder / "data.yaml").write_text(yaml.safe_dump(make_data(folder / "data", images=8)))
    base = ROOT / "configs" / "eomt" / "dinov3_vits16_folder.py"
    (folder / "tiny.py").write_text(
        f"_base_ = [{str(base)!r}]\n"
        f"model = dict(backbone=dict(arch=dict(_delete_=True, **{ARCH!r}), image_size=32,\n"
        "    num_joint_blocks=1, pretrained=None), decode_head=dict(num_queries=4,\n"
        "    num_upscale_blocks=1, loss_decode=dict(num_points=32)))\n"
        f"train_cfg = dict(max_iters={STEPS}, global_batch_size=4, val_interval=1000)\n"
        "train_dataloader = dict(batch_size=1, num_workers=1)\n"
        "default_hooks = dict(checkpoint=dict(interval=5), logger=dict(interval=1))\n"
    )


def start(folder: Path, name: str, *, restarts: int) -> subprocess.Popen[str]:
    command = ["bash", "tools/dist_train.sh", f"{folder}/tiny.py", "2"]
    command += ["--data", f"{folder}/data.yaml", "--work-dir", f"{folder}/{name}", "--image-size"]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"MAX_RESTARTS": str(restarts), "PORT": str(free_port())}
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [*command, "32"], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
        )


def children(pid: int) -> list[int]:
    """Processes that a process started (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_process_is_replaced_and_the_run_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    write_config(tmp_path)
    calm = start(tmp_path, "calm", restarts=0)
    assert calm.wait(LIMIT) == 0, (tmp_path / "calm.log").read_text()[-3000:]
    struck = start(tmp_path, "struck", restarts=1)
    end = time.monotonic() + LIMIT
    while not (tmp_path / "struck" / "iter_10.pth").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(children(struck.pid)[-1], signal.SIGKILL)
    log = tmp_path / "struck.log"
    assert struck.wait(LIMIT) == 0, log.read_text()[-3000:]
    assert "Resumed from" in log.read_text()
    last = f"iter_{STEPS}.pth"
    assert differences(tmp_path / "calm" / last, tmp_path / "struck" / last) == []
    # The log of the run goes on where the first start ended.
    assert (tmp_path / "struck" / "train.log").read_text().count(f"[{STEPS}/{STEPS}]") == 1
    refused = start(tmp_path, "struck", restarts=1)
    assert refused.wait(LIMIT) != 0
    assert "this folder has checkpoints" in log.read_text()
