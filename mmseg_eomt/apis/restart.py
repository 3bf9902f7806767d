"""Runs that torchrun starts again when a process is lost (``--max-restarts``).

Every process of a restart has to continue from the same checkpoint. torchrun's own count does not
tell: each machine counts for itself, one that was added later counts none, restarts because of it
count nowhere, and a start that was refused is counted. So a start that was accepted leaves a mark
with torchrun's agent, and the processes agree on what they find.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object

from mmseg_eomt.checkpoints.run_folder import checkpoints_of
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
