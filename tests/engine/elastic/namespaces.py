"""Two machines with addresses of their own: network namespaces, and a cable between them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # linux/sched.h
FOLDER = Path("/run/netns")


@dataclass(frozen=True)
class Machine:
    """A namespace.

    Attributes:
        net: Its name.
        address: Of its end of the cable.
        interface: Name of that end.
    """

    net: str
    address: str
    interface: str

    def cable(self, *, up: bool) -> None:
        """Takes its end of the cable out, or puts it back; nobody is told, packets are lost."""
        _ip("-n", self.net, "link", "set", self.interface, "up" if up else "down")


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two of them; they are gone after the block.

    Raises:
        OSError: If this process may not make them.
    """
    one, two = (
        Machine(f"el{end}{os.getpid()}", f"10.77.0.{number}", f"el{end}")
        for number, end in ((1, "a"), (2, "b"))
    )
    try:
        for machine in (one, two):
            _ip("netns", "add", machine.net)
        ends = [("netns", machine.net) for machine in (one, two)]
        _ip("link", "add", one.interface, *ends[0], "type", "veth", "peer", two.interface, *ends[1])
        for machine in (one, two):
            inside = ("-n", machine.net)
            _ip(*inside, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            _ip(*inside, "link", "set", "lo", "up")
            machine.cable(up=True)
        yield one, two
    finally:
        for machine in (one, two):
            with suppress(OSError):
                _ip("netns", "del", machine.net)


def why_not() -> str | None:
    """Why this process cannot have two machines; None if it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        with two_machines():
            return None
    except OSError as error:
        return f"no network namespaces with a veth pair here (they need root): {error}"


def enter(net: str) -> None:
    """Moves this thread, and what it starts, into a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(FOLDER / net, "rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {net}")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
