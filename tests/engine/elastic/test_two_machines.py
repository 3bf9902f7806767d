"""Machines are killed and cut off again and again; the run ends as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mmseg_eomt.checkpoints.run_folder import checkpoints_of
from tests.engine.elastic.agent import LIMIT, Agent, differences, worker_of
from tests.engine.elastic.namespaces import Machine, two_machines, why_not
from tests.ranks import free_port

STEPS = 80
STRIKES = 10
KINDS = ("worker", "agent", "machine", "cut off")
# Seconds without an answer after which a process gives up.
TIMEOUT = 4.0


class Cluster:
    """A run on two machines; whoever keeps them alive starts an agent again that has failed."""

    def __init__(self, folder: Path, machines: tuple[Machine, Machine]) -> None:
        self.folder, self.machines, self.port = folder, machines, free_port()
        self.agents = [self.start(number, resume=False) for number in range(2)]
        self.end = time.monotonic() + 3 * LIMIT

    def start(self, number: int, *, resume: bool) -> Agent:
        """Starts the agent of a machine, which trains with one process."""
        machine = self.machines[number]
        return Agent(
            self.folder,
            options={"steps": STEPS, "resume": resume, "timeout": TIMEOUT, "fate": {"pause": 0.05}},
            machine=machine,
            min_nodes=2,
            max_nodes=2,
            nproc_per_node=1,
            max_restarts=100,
            local_addr=machine.address,
            rdzv_endpoint=f"{self.machines[0].address}:{self.port}",
            rdzv_configs={"is_host": number == 0},
        )

    def wait(self, until: Callable[[], bool], *, seconds: float = LIMIT) -> bool:
        """Whether something came true in time; agents that have failed are started again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if until():
                return True
            for number, agent in enumerate(self.agents):
                if agent.process.exitcode not in (None, 0):
                    # With the first one the list of machines is lost, and both are new.
                    self.agents[number] = self.start(number, resume=number == 0)
            assert time.monotonic() < self.end, self.output()
            time.sleep(0.01)
        return False

    def output(self) -> str:
        return "\n".join(agent.log.read_text()[-3000:] for agent in self.agents)

    def workers(self) -> list[int]:
        """The newest process of each rank, 0 for one that never was."""
        found = [worker_of(self.folder, rank) for rank in range(2)]
        return [pid for _, pid in filter(None, found)]

    def step(self) -> int:
        return max(checkpoints_of(self.folder), default=0)

    def ended(self) -> bool:
        return all(agent.process.exitcode == 0 for agent in self.agents)

    def strike(self, kind: str, number: int, *, seconds: float) -> None:
        """Does to a machine what can happen to it."""
        if kind == "cut off":
            self.machines[number].cable(up=False)
            self.wait(lambda: False, seconds=seconds)
            self.machines[number].cable(up=True)
        if kind in ("agent", "machine"):
            self.agents[number].process.kill()
        if kind in ("worker", "machine"):
            with suppress(ProcessLookupError):
                os.kill(self.workers()[number], signal.SIGKILL)


def survive(run: Cluster, chance: random.Random, *, strikes: int) -> Counter[str]:
    """Strikes a run until it is nearly done or has seen enough; waits for its end."""
    struck: Counter[str] = Counter()
    before: list[int] = []
    kind = ""
    while struck.total() < strikes:
        # Another pair of processes, or the same where a cut was too short to be noticed.
        started = lambda: len(set(run.workers()) - set(before)) == 2  # noqa: E731, B023
        if not run.wait(started, seconds=LIMIT if not before else 6 * TIMEOUT):
            assert kind == "cut off", run.output()
        run.wait(lambda: False, seconds=chance.uniform(0.0, 4.0))
        if run.step() > STEPS - 20:
            break
        before = run.workers()
        kind = chance.choice(KINDS)
        run.strike(kind, chance.randrange(2), seconds=chance.uniform(0.5, 2.5) * TIMEOUT)
        struck[kind] += 1
    assert run.wait(run.ended), run.output()
    return struck


@pytest.mark.slow
def test_machines_are_killed_and_cut_off(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    chance = random.Random(4)
    struck: Counter[str] = Counter()
    last = f"iter_{STEPS}.pth"
    with two_machines() as machines:
        calm = Cluster(tmp_path / "calm", machines)
        assert calm.wait(calm.ended), calm.output()
        runs = 0
        while struck.total() < STRIKES:
            runs += 1
            run = Cluster(tmp_path / f"struck{runs}", machines)
            struck += survive(run, chance, strikes=STRIKES - struck.total())
            assert differences(calm.folder / last, run.folder / last) == []
            assert not [name for name in os.listdir(run.folder) if name.endswith(".tmp")]
    assert set(struck) == set(KINDS), struck
