"""Processes of a run: launched, restarted by torchrun, lost, and loaders' workers that died.

Every process of a restart has to continue from the same checkpoint. torchrun's own count does not
tell: each machine counts for itself, one that was added later counts none, restarts because of it
count nowhere, and a start that was refused is counted. So a start that was accepted leaves a mark
with torchrun's agent, and the processes agree on what they find.

They are started by `torch.distributed.run` with this module, not by forking or spawning the
caller: so the call also works in a notebook and in a script without a `__main__` guard.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import distributed

from mmseg_eomt.checkpoints.run_folder import checkpoints_of
from mmseg_eomt.datasets.skipping import files_in_flight
from mmseg_eomt.engine.process_group import start_group

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
MOST_RESTARTS = "TORCHELASTIC_MAX_RESTARTS"
# A file in the folder of its own that each agent makes: FOLDER/attempt_0/RANK/error.json.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
MARK = "mmseg_eomt_started"


def restarts() -> int:
    """How often torchrun has started this process again, as far as it counts."""
    return int(os.environ.get(RESTARTS, "0"))


def agree_on_resume(cfg: Any, resume: bool | str) -> bool | str:
    """Whether a run goes on, if torchrun may start its processes again; all of them call it.

    The group of processes is started for it, so no process of an earlier start is left to write
    into the run's folder when this returns.

    Args:
        cfg (Config): Of the run, with ``launcher`` and ``work_dir``.
        resume (bool | str): What the user asked for: True for the newest checkpoint, or its path.

    Returns:
        ``resume`` where torchrun restarts nothing. Else True if it is asked for in any process, or
        any of their agents has begun this run before; the run then continues from the newest
        intact checkpoint if there is one.

    Raises:
        ValueError: If a restart could not tell checkpoints of this run from others.
    """
    if cfg.launcher != "pytorch" or int(os.environ.get(MOST_RESTARTS, "0")) == 0:
        return resume
    if isinstance(resume, str):
        raise ValueError(
            f"--resume {resume} with restarts (MAX_RESTARTS, --max-restarts): each start continues "
            "from the newest checkpoint of the run's folder, so give --resume alone, and as "
            "--work-dir a folder in which that checkpoint is the newest."
        )
    own = os.environ.get(ERROR_FILE, os.devnull)
    if own == os.devnull:
        raise ValueError(
            "torchrun keeps no folder of this run, where its starts are marked: leave --log-dir "
            f"{os.devnull} out, or --max-restarts."
        )
    start_group(cfg.launcher, cfg.get("env_cfg") or {})
    mark = Path(own).parents[2] / MARK
    continued = any(all_gather_object(bool(resume) or mark.exists()))
    found = list(checkpoints_of(cfg.work_dir).values())
    if found and not continued:
        raise ValueError(
            f"{found[-1]}: this folder has checkpoints, and with restarts (MAX_RESTARTS, "
            "--max-restarts) a lost process would make this run continue from them. Continue that "
            "run with --resume, or give a new run another --work-dir."
        )
    mark.touch()
    return continued


@contextmanager
def explaining_lost_processes(runner: Any) -> Iterator[None]:
    """Turns an error of the process group, seen where the others vanished, into its reason.

    With NCCL a watchdog may end the process first; it names the exchange that timed out.

    Raises:
        ConnectionError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_group(error):
            raise
        timeout = ((runner.cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout")
        waited = "the time that torch waits by default" if timeout is None else f"{timeout} s"
        raise ConnectionError(
            f"Process {get_rank()} of {get_world_size()} cannot go on after step {runner.iter}: "
            f"another process has ended, or did not answer for {waited} "
            "(env_cfg.dist_cfg.timeout). Why, its own output says, or torchrun's report. Continue "
            "with --resume; with MAX_RESTARTS set, tools/dist_train.sh does so by itself. "
            f"({error})"
        ) from error


def _is_of_group(error: RuntimeError) -> bool:
    # gloo has no class of its own; its errors begin with a path of its sources.
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@contextmanager
def naming_files(runner: Any) -> Iterator[None]:
    """Adds the files to torch's error about a worker that crashed, which names none.

    Raises:
        RuntimeError: With the files, in place of torch's.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        loaders = [getattr(runner, f"_{name}", None) for name in _LOADERS]
        files = [
            path for loader in loaders for path in files_in_flight(getattr(loader, "dataset", None))
        ]
        if not files:
            raise
        raise RuntimeError(
            f"A worker that reads images died while it or another worker was reading: "
            f"{', '.join(sorted(set(files)))}. Look at these files; a worker also dies when memory "
            f"runs out (num_workers=0 shows which file it is). {error}"
        ) from error


def launch_training(settings: Mapping[str, Any], *, world_size: int, module: str) -> None:
    """Train with `world_size` processes on this machine and wait for them.

    Args:
        settings: Arguments of the module's `train_process`.
        world_size: Number of processes.
        module: Where that function is.

    Raises:
        RuntimeError: If a process fails; its own message is on stderr and in train.log.
    """
    with tempfile.TemporaryDirectory(prefix="mmseg_eomt_") as folder:
        # YAML and not pickle: plain data, and integer keys stay integers.
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(_plain(settings)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={world_size}", "-m", __name__, str(path), module),
        ]
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        raise RuntimeError(
            f"training with {world_size} processes failed (exit code {code}); the message of the "
            f"process that failed first is above and in {settings['out']}/train.log."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _worker(path: str, module: str) -> None:
    """Train as one of the processes."""
    from mmseg_eomt.engine.process_group import end_with_launcher

    end_with_launcher()
    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    train = importlib.import_module(module).train_process
    train(world_size=int(os.environ["WORLD_SIZE"]), **settings)


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2])
