"""The launchers start torchrun with what was asked for; srun and python are stand-ins here."""

from __future__ import annotations

import subprocess
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"
# What Slurm does on each node of a job of two, here for the second one.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$(dirname "$0")/srun.txt"
while [ "${1:0:1}" = - ]; do [ "$1" = -p ] && shift; shift; done
export SLURM_NNODES=2 SLURM_NODEID=1 SLURM_JOB_ID=77 SLURM_JOB_NODELIST='node[4-5]'
exec "$@"
"""
SCONTROL = "#!/bin/bash\necho node4; echo node5\n"


def run(script: str, *arguments: str, folder: Path, **variables: str) -> list[str]:
    """The command that a launcher would execute."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(TOOLS / script), *arguments],
        env={"PATH": f"{folder}:/usr/bin:/bin", "PYTHON": "echo", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_one_machine_without_restarts_is_launched_as_in_mmsegmentation(tmp_path: Path) -> None:
    words = run("dist_train.sh", "c.py", "4", "--amp", folder=tmp_path, PORT="1234")
    for word in ("--nnodes=1", "--nproc_per_node=4", "--node_rank=0", "--master_port=1234"):
        assert word in words
    assert words[-4:] == ["c.py", "--launcher", "pytorch", "--amp"]
    assert not any("rdzv" in word or "restarts" in word for word in words)


def test_restarts_need_a_rendezvous_that_can_be_held_again(tmp_path: Path) -> None:
    words = run(
        "dist_train.sh", "c.py", "4", folder=tmp_path, MAX_RESTARTS="3", NNODES="2",
        NODE_RANK="1", MASTER_ADDR="10.0.0.1", RDZV_ID="a", LOCAL_ADDR="10.0.0.2",
        RDZV_CONF="join_timeout=60",
    )  # fmt: skip
    for word in (
        "--rdzv_backend=c10d", "--rdzv_endpoint=10.0.0.1:29500", "--rdzv_id=a",
        "--max_restarts=3", "--rdzv_conf=is_host=false,join_timeout=60", "--nnodes=2",
        "--local_addr=10.0.0.2",
    ):  # fmt: skip
        assert word in words
    assert not any("master" in word for word in words)


def test_slurm_starts_one_agent_a_node_for_restarts(tmp_path: Path) -> None:
    words = run(
        "slurm_train.sh", "part", "job", "c.py", "--resume", folder=tmp_path, MAX_RESTARTS="2",
        GPUS="16", GPUS_PER_NODE="8",
    )  # fmt: skip
    for word in (
        "--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=node4:29500", "--rdzv_id=77",
        "--max_restarts=2", "--rdzv_conf=is_host=false",
    ):  # fmt: skip
        assert word in words
    assert words[-4:] == ["c.py", "--launcher", "pytorch", "--resume"]
    asked = (tmp_path / "srun.txt").read_text().split()
    for word in ("--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:8", "--cpus-per-task=40"):
        assert word in asked


def test_slurm_without_restarts_starts_each_process_itself(tmp_path: Path) -> None:
    words = run("slurm_train.sh", "part", "job", "c.py", folder=tmp_path, GPUS="2")
    assert words[-3:] == ["c.py", "--launcher", "slurm"]
    assert "--ntasks=2" in (tmp_path / "srun.txt").read_text().split()


def test_gpus_that_fill_no_node_are_refused() -> None:
    done = subprocess.run(
        ["bash", str(TOOLS / "slurm_train.sh"), "part", "job", "c.py"],
        env={"PATH": "/usr/bin:/bin", "MAX_RESTARTS": "1", "GPUS": "12", "GPUS_PER_NODE": "8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "multiple of GPUS_PER_NODE=8" in done.stderr
