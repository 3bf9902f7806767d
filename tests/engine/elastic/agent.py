"""A run of two processes under torchrun's agent, and what kills them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mmseg_eomt.apis.restart import agree_on_resume
from tests.engine.exact import exact_runner
from tests.kill_trainer import HeavySegmentor
from tests.ranks import FORKS

STEPS = 12
LIMIT = 240.0
EMA = {"type": "EMAHook", "momentum": 0.1}


def train_as_restarted(folder: str) -> None:
    """One process of the run in ``folder``, as tools/train.py begins it."""
    torch.set_num_threads(1)
    cfg = Config({"launcher": "pytorch", "work_dir": folder})
    resume = agree_on_resume(cfg, False)
    life, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    Path(folder, f"life{life}.rank{rank}").write_text(f"{os.getpid()} {resume}")
    run = exact_runner(
        Path(folder),
        steps=STEPS,
        every=2,
        model=HeavySegmentor(),
        hooks=[EMA],
        checkpoint_args={"max_keep_ckpts": 2},
        resume=resume,
        launcher="pytorch",
        experiment_name=f"elastic{os.getpid()}",
    )
    run.train()
    torch.distributed.destroy_process_group()


def run_agent(folder: str, restarts: int) -> None:
    """torchrun's agent; its two workers are forks of it here and no new interpreters."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as tools/dist_train.sh does
    output = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="elastic",
        max_restarts=restarts,
        start_method="fork",
    )
    elastic_launch(config, train_as_restarted)(folder)


class Agent:
    """A run in ``folder``; ``log`` has what it printed."""

    def __init__(self, folder: Path, *, restarts: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.log = folder, Path(f"{folder}.log")
        self.process = FORKS.Process(target=run_agent, args=(str(folder), restarts))
        self.process.start()

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        self.process.join(LIMIT)
        assert self.process.exitcode == 0, self.log.read_text()[-5000:]

    def kill(self, *, life: int, rank: int, when: Callable[[], bool]) -> bool:
        """Kills a process of a life once ``when`` is true; False if the run ended before."""
        worker = self.folder / f"life{life}.rank{rank}"
        while self.process.is_alive():
            if worker.exists() and worker.read_text() and when():
                os.kill(int(worker.read_text().split()[0]), signal.SIGKILL)
                return True
        return False


def in_a_write(folder: Path, step: str = "") -> Callable[[], bool]:
    """Whether a checkpoint of a run, or that of a step, is half written now."""
    start = f".iter_{step}"
    return lambda: any(
        name.startswith(start) and name.endswith(".tmp") for name in os.listdir(folder)
    )


def after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since it was first asked."""
    began: list[float] = []

    def passed() -> bool:
        time.sleep(0.001)
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return passed


def agree(folder: str) -> None:
    """What two processes agree on, one of which may know more than the other."""
    rank = os.environ["RANK"]
    os.environ.update(TORCHELASTIC_MAX_RESTARTS="3", TORCHELASTIC_RESTART_COUNT="0")
    cfg = Config({"launcher": "pytorch", "work_dir": folder})
    assert agree_on_resume(cfg, False) is False
    assert agree_on_resume(cfg, rank == "1") is True
    # On the second machine torchrun did not count the restart.
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1" if rank == "0" else "0"
    assert agree_on_resume(cfg, False) is True
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    barrier()  # the other one may still look for checkpoints
    Path(folder, "iter_3.pth").touch()
    try:
        agree_on_resume(cfg, False)
    except ValueError as error:
        assert "iter_3.pth: this folder has checkpoints" in str(error) and "--resume" in str(error)
    else:
        raise AssertionError("a new run in the folder of another one would continue that")
