"""A run of two processes under torchrun's agents, and what kills them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mmseg_eomt.apis.processes import MARK, agree_on_resume
from mmseg_eomt.apis.run import run_training
from mmseg_eomt.engine.process_group import end_with_launcher
from mmseg_eomt.safe_write import write_text
from tests.engine.elastic.namespaces import Machine, enter
from tests.engine.exact import compare, exact_runner
from tests.kill_trainer import HeavySegmentor
from tests.ranks import FORKS

STEPS = 12
LIMIT = 120.0
EMA = {"type": "EMAHook", "momentum": 0.1}


def announce() -> None:
    """Writes where a killer finds this process: its life and number."""
    end_with_launcher()
    torch.set_num_threads(1)
    life, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    write_text(Path(os.environ["ELASTIC_FOLDER"], f"rank{rank}.pid"), f"{life} {os.getpid()}")


@HOOKS.register_module()
class Fate(Hook):  # type: ignore[misc]
    """Slows steps down, so that they can be hit from outside, and kills this process at times.

    Args:
        plan: ``(life, rank, step, in_write)``: killed before that step, or when its checkpoint is
            on the disk but has no name yet.
        pause: Seconds before each step.
    """

    def __init__(self, plan: Sequence[tuple[int, int, int, bool]] = (), pause: float = 0.0) -> None:
        own = (int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"]))
        self.pause = pause
        self.steps = [step for *who, step, in_write in plan if tuple(who) == own and not in_write]
        writes = [
            f"iter_{step}." for *who, step, in_write in plan if tuple(who) == own and in_write
        ]
        if writes:
            self.kill_in_writes(tuple(writes))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        time.sleep(self.pause)
        if runner.iter in self.steps:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def kill_in_writes(names: tuple[str, ...]) -> None:
        def struck(real: Callable[..., Any]) -> Callable[..., Any]:
            def rename(source: Any, target: Any) -> Any:
                if Path(target).name.startswith(names):
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(source, target)

            return rename

        os.replace, os.rename = struck(os.replace), struck(os.rename)  # files, folders


def train(
    *,
    steps: int = STEPS,
    resume: bool = False,
    timeout: float = 60.0,
    fate: dict[str, Any] | None = None,
) -> None:
    """One process of a toy run, begun as tools/train.py begins it."""
    folder = Path(os.environ["ELASTIC_FOLDER"])
    env_cfg = {"dist_cfg": {"backend": "nccl", "timeout": timeout}}
    cfg = Config({"launcher": "pytorch", "work_dir": str(folder), "env_cfg": env_cfg})
    going_on = agree_on_resume(cfg, resume)
    announce()
    run = exact_runner(
        folder,
        steps=steps,
        every=2,
        model=HeavySegmentor(),
        hooks=[EMA, Fate(**(fate or {}))],
        checkpoint_args={"max_keep_ckpts": 2},
        resume=going_on,
        launcher="pytorch",
        env_cfg=env_cfg,
        experiment_name=f"elastic{os.getpid()}",
    )
    run.train()
    torch.distributed.destroy_process_group()


def train_sharded(*, data: Any, fate: dict[str, Any] | None = None) -> None:
    """One process of a run of a tiny EoMT whose weights and checkpoints are spread (FSDP2)."""
    from tests.engine.sharding_tasks import config

    folder = os.environ["ELASTIC_FOLDER"]
    cfg = Config({"launcher": "pytorch", "work_dir": folder})
    going_on = bool(agree_on_resume(cfg, False))
    announce()
    options = {"steps": STEPS, "every": 2, "strategy": "FSDP2", "resume": going_on}
    options["hooks"] = [EMA, {"type": "Fate", **(fate or {})}]
    run_training(config(folder, data, world=2, **options))
    torch.distributed.destroy_process_group()


def work(task: str, options: dict[str, Any]) -> None:
    """One process; torch's agent hands on positional arguments alone."""
    TASKS[task](**options)
    # It now waits for the agent, which would wait forever for one that is killed there; processes
    # of torchrun's command line do not wait.
    Path(os.environ["ELASTIC_FOLDER"], f"rank{os.environ['RANK']}.pid").unlink()


def run_agent(
    folder: str, task: str, options: dict[str, Any], launch: dict[str, Any], machine: Machine | None
) -> None:
    """torchrun's agent; its workers are forks of it here and no new interpreters."""
    # As tools/dist_train.sh does.
    os.environ.update(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", ELASTIC_FOLDER=folder)
    # mmengine collects results in files under the working directory; who is killed leaves them.
    os.chdir(folder)
    output = os.open(log_of(folder, machine), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if machine is not None:
        enter(machine.net)
        # The name of this computer leads gloo to 127.0.0.1.
        os.environ["GLOO_SOCKET_IFNAME"] = machine.interface
    settings = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "start_method": "fork"}
    settings |= {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "elastic"}
    elastic_launch(LaunchConfig(**{**settings, **launch}), work)(task, options)


def log_of(folder: str | Path, machine: Machine | None) -> Path:
    """What an agent and its workers print."""
    return Path(f"{folder}{'' if machine is None else machine.interface}.log")


class Agent:
    """An agent and its workers, of a run in ``folder``; ``log`` has what they print.

    Args:
        folder: Of the run.
        task: Name of what a worker does, in ``TASKS``.
        options: Arguments of it.
        machine: Where the agent is.
        launch: Of torch's ``LaunchConfig``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str = "train",
        options: dict[str, Any] | None = None,
        machine: Machine | None = None,
        **launch: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.log = folder, log_of(folder, machine)
        arguments = (str(folder), task, options or {}, launch, machine)
        self.process = FORKS.Process(target=run_agent, args=arguments)
        self.process.start()

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        self.process.join(LIMIT)
        assert self.process.exitcode == 0, self.log.read_text()[-5000:]

    def kill(self, *, life: int, rank: int, when: Callable[[], bool]) -> bool:
        """Kills a process of a life once ``when`` is true; False if the run ended before."""
        end = time.monotonic() + LIMIT
        while self.process.is_alive() and time.monotonic() < end:
            found = worker_of(self.folder, rank)
            if found is not None and found[0] == life and when():
                os.kill(found[1], signal.SIGKILL)
                return True
            time.sleep(0.0005)
        return False


def worker_of(folder: Path, rank: int) -> tuple[int, int] | None:
    """Life and number of the newest process of a rank."""
    try:
        life, pid = (folder / f"rank{rank}.pid").read_text().split()
    except FileNotFoundError:
        return None
    return int(life), int(pid)


def in_a_write(folder: Path) -> Callable[[], bool]:
    """Whether a checkpoint of a run is half written now."""
    return lambda: any(
        name.startswith(".iter_") and name.endswith(".tmp") for name in os.listdir(folder)
    )


def differences(one: Path, other: Path) -> list[str]:
    """What differs in two checkpoints of the same step.

    The hub's number of the last step is 1 more where a run was killed between its last checkpoint
    and the validation that is due then; nothing is computed from it.
    """
    return [line for line in compare(one, other) if "['runtime_info']['iter']" not in line]


def after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since it was first asked."""
    began: list[float] = []

    def passed() -> bool:
        time.sleep(0.001)
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return passed


def agree(folder: str) -> None:
    """What two processes of two agents agree on, one of which may know more than the other."""
    rank = os.environ["RANK"]
    agent = Path(folder, f"agent{rank}")
    (agent / "attempt_0" / "0").mkdir(parents=True)
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(agent / "attempt_0" / "0" / "error.json")
    os.environ.update(TORCHELASTIC_MAX_RESTARTS="3", TORCHELASTIC_RESTART_COUNT="0")
    cfg = Config({"launcher": "pytorch", "work_dir": folder})

    def forget(*ranks: str) -> None:
        if rank in ranks:
            (agent / MARK).unlink()

    assert agree_on_resume(cfg, False) is False
    # The same agents begin it again, which torchrun does not always count.
    assert agree_on_resume(cfg, False) is True
    forget("1")  # a machine that was added later
    assert agree_on_resume(cfg, False) is True
    forget("0", "1")
    assert agree_on_resume(cfg, rank == "1") is True
    forget("0", "1")
    barrier()  # the other one may still look for checkpoints
    Path(folder, "iter_3.pth").touch()
    for restarts in "01":  # torchrun starts again what was refused
        os.environ["TORCHELASTIC_RESTART_COUNT"] = restarts
        try:
            agree_on_resume(cfg, False)
        except ValueError as error:
            assert "iter_3.pth: this folder has checkpoints" in str(error)
            assert "--resume" in str(error)
        else:
            raise AssertionError("a new run would continue another one")


TASKS: dict[str, Callable[..., None]] = {"train": train, "train_sharded": train_sharded}
