"""The process group of a run: on CPUs, where mmengine can only start one on GPUs, and its end."""

from __future__ import annotations

import atexit
import ctypes
import datetime
import os
import re
import signal
import subprocess
import sys
from typing import Any

import torch
from mmengine.dist import init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_launcher() -> None:
    """Makes a process that torchrun started end when torchrun is killed; on Linux.

    Else it would train on, and write into the same folder as the run that is started in its place.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_group(launcher: str, env_cfg: dict[str, Any]) -> None:
    """Starts the group as a runner does, if processes have to agree before one is built.

    Args:
        launcher (str): Of the run.
        env_cfg (dict): Of the config.
    """
    if is_distributed():
        return
    set_multi_processing(**(env_cfg.get("mp_cfg") or {}), distributed=True)
    dist_cfg = env_cfg.get("dist_cfg") or {}
    start_without_cuda(launcher, dist_cfg)
    if not is_distributed():
        init_dist(launcher, **dist_cfg)


def start_without_cuda(launcher: str, dist_cfg: dict[str, Any]) -> None:
    """Starts a gloo group where there is no CUDA; mmengine selects a CUDA device in any case.

    Args:
        launcher (str): 'pytorch' (torchrun) or 'slurm'.
        dist_cfg (dict): ``env_cfg.dist_cfg``, of which ``timeout`` (seconds) is used, and with
            Slurm ``port``.

    Raises:
        ValueError: If the launcher cannot work without CUDA, or did not set its variables.
    """
    if is_distributed() or torch.cuda.is_available():
        return
    if launcher == "slurm":
        _read_slurm(dist_cfg.get("port"))
    elif launcher != "pytorch":
        raise ValueError(
            f"--launcher {launcher} needs CUDA, which this machine does not offer: use --launcher "
            "pytorch (tools/dist_train.sh) or slurm (tools/slurm_train.sh), which run on CPUs too."
        )
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher pytorch, but {', '.join(missing)} is not set: start with torchrun or "
            "tools/dist_train.sh."
        )
    seconds = dist_cfg.get("timeout")
    timeout = None if seconds is None else datetime.timedelta(seconds=float(seconds))
    distributed.init_process_group("gloo", timeout=timeout)
    atexit.register(_end_group)


def _end_group() -> None:
    """Joins gloo's threads while there is a Python.

    One that gives up a tensor after Python has gone aborts the process (SIGABRT, rarely, at the
    very end of a run), and a launcher takes that for a lost process.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _read_slurm(port: int | None) -> None:
    """torch's variables from those of Slurm, as mmengine sets them on GPUs."""
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher slurm, but {', '.join(missing)} is not set: start with "
            "tools/slurm_train.sh."
        )
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host(os.environ["SLURM_NODELIST"])
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]


def _first_host(nodes: str) -> str:
    """Of a list of nodes such as ``a[3-5,7],b``; ``scontrol`` knows how to read it."""
    if not re.search(r"[\[,]", nodes):
        return nodes
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]
