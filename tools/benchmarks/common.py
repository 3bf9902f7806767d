"""What all benchmarks share: options, timing, peak memory, the device's matrix rate, the table.

Times are wall-clock seconds. The contestants of a comparison run in turns in one process, so that
whatever else the machine does hits all of them. Memory is MiB (2^20 bytes).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MIB = 2**20
REFERENCE = "transformers"
OURS = "mmseg_eomt"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name (str): The contestant.
        seconds (list[float]): Time of each repeat.
        memory (float, optional): Peak in MiB. None: not measured.
        work (float): Units of work in one repeat; ``work / seconds`` is shown if not 0.
        flops (float): Floating point operations of one repeat, for the utilisation; 0: not shown.
        extra (dict): More columns.
    """

    name: str
    seconds: list[float]
    memory: float | None = None
    work: float = 0.0
    flops: float = 0.0
    extra: Mapping[str, str] | None = None

    @property
    def median(self) -> float:
        """Median of the repeats in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest less smallest time, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def make_parser(description: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="float32; bfloat16 on cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"({repeats})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def set_up(args: argparse.Namespace) -> None:
    """Completes the common options and applies them to this process.

    Raises:
        SystemExit: If the device is not there.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this PyTorch sees no GPU. Use --device cpu.")
    if args.dtype is None:
        args.dtype = "bfloat16" if args.device == "cuda" else "float32"
    if args.quick:
        args.repeats = min(args.repeats, 2)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)


def synchronize(device: str) -> None:
    """Waits until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(
    contestants: Mapping[str, Callable[[int], object]],
    *,
    repeats: int,
    device: str = "cpu",
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Runs the contestants in turns.

    Args:
        contestants (Mapping[str, Callable]): Each is called with the number of the turn.
        repeats (int): Turns that count.
        device (str): 'cpu' or 'cuda'; its queue is empty when a time is taken.
        warm_up (int): Turns before them. Defaults to 1.

    Returns:
        dict[str, list[float]]: Seconds of each counted turn.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + repeats):
        names = list(contestants)
        # Who runs second may find warm or dirty caches: take turns in that as well.
        for name in names if turn % 2 == 0 else reversed(names):
            synchronize(device)
            start = time.perf_counter()
            contestants[name](turn)
            synchronize(device)
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def peak_memory(
    prepare: Callable[..., Callable[[int], object]],
    *arguments: Any,
    device: str = "cpu",
    threads: int = 1,
    turns: int = 2,
) -> float:
    """Peak memory of some work above that of a process which has only imported the packages.

    Runs in a child process of its own: what an earlier contestant freed would otherwise be
    reused unseen. On the CPU it is the resident set's peak while the work runs (not while it is
    prepared) less its size before the preparation; on CUDA torch's ``max_memory_allocated``.

    Args:
        prepare (Callable): Function of a module, called with ``arguments`` in the child. Makes
            models and inputs and returns the work, a function of the number of the turn.
        arguments (Any): Picklable.
        device (str): 'cpu' or 'cuda'.
        threads (int): CPU threads of the child.
        turns (int): How often the work is run; optimiser states appear in the first. Defaults
            to 2.

    Returns:
        float: MiB.

    Raises:
        RuntimeError: If the child fails; its own traceback is on stderr.
    """
    # A server that has imported everything and done nothing else is forked for each child, which
    # costs one import per benchmark and gives each of them a clean heap.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers", "mmseg.models", "mmseg_eomt"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_measure_peak, args=(sender, prepare, arguments, device, threads, turns)
    )
    child.start()
    sender.close()
    try:
        peak = float(receiver.recv())
    except EOFError:
        peak = -1.0
    child.join()
    if peak < 0:
        raise RuntimeError(
            f"The child process that measures {prepare.__name__}{arguments} ended with code "
            f"{child.exitcode}. If it ran out of memory, give smaller sizes."
        )
    return peak


def _measure_peak(
    sender: Any,
    prepare: Callable[..., Callable[[int], object]],
    arguments: tuple[Any, ...],
    device: str,
    threads: int,
    turns: int,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    import_models()
    base = resident_memory()
    work = prepare(*arguments)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for turn in range(turns):
        work(turn)
    if device == "cuda":
        torch.cuda.synchronize()
        sender.send(torch.cuda.max_memory_allocated() / MIB)
    else:
        sender.send(peak_resident() - base)


def import_models() -> None:
    """Imports what any contestant needs, so that code does not count as memory of one of them."""
    from mmengine.registry import init_default_scope
    from transformers import (  # noqa: F401
        EomtDinov3ForUniversalSegmentation,
        EomtForUniversalSegmentation,
        EomtImageProcessorPil,
    )

    import mmseg_eomt  # noqa: F401

    init_default_scope("mmseg")


def resident_memory() -> float:
    """Resident set of this process now, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MIB


def reset_peak() -> None:
    """Lets `peak_resident` start anew from here (Linux; see proc_pid_clear_refs(5))."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_resident() -> float:
    """Largest resident set since `reset_peak`, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def matrix_rate(device: str, dtype: str, *, quick: bool = False) -> float:
    """Measured floating point operations per second of a large matrix product.

    Args:
        device (str): 'cpu' or 'cuda'.
        dtype (str): Of ``DTYPES``.
        quick (bool): Small matrices. Defaults to False.

    Returns:
        float: The best of several runs: what the device can do, not what it does on average.
    """
    side = 256 if quick else 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    times = interleave({"product": lambda _: a @ b}, repeats=10, device=device, warm_up=3)
    return 2 * side**3 / min(times["product"])


def machine(device: str, threads: int) -> str:
    """The machine and the versions, for the head of a table."""
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        name = f"{_processor()}, {threads} thread" + "s" * (threads > 1)
    packages = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "timm", "transformers")
    )
    return f"{name}; Python {platform.python_version()}, {packages}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def print_table(
    title: str,
    rows: Sequence[Row],
    *,
    reference: str = REFERENCE,
    unit: str = "images",
    rate: float = 0.0,
    note: str = "",
) -> None:
    """Prints rows with their ratios to the reference.

    Args:
        title (str): What was run.
        rows (Sequence[Row]): The contestants.
        reference (str): Name of the row that the ratios refer to; without it there are none.
        unit (str): Of ``Row.work``.
        rate (float): The device's matrix rate, from `matrix_rate`; 0 leaves utilisation out.
        note (str): Below the table.
    """
    base = next((row for row in rows if row.name == reference), None)
    extra = list(dict.fromkeys(key for row in rows for key in row.extra or ()))
    columns = ["", "median ms", "spread"]
    columns += [f"{unit}/s"] if any(row.work for row in rows) else []
    columns += ["times as fast"] if base else []
    memory = any(row.memory is not None for row in rows)
    columns += ["peak MiB"] if memory else []
    columns += ["of the memory"] if memory and base else []
    columns += ["MFU"] if rate else []
    table = Table(title=title, title_justify="left", caption=note or None, caption_justify="left")
    for column in columns + extra:
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        cells = [row.name, f"{row.median * 1e3:.1f}", f"{row.spread:.0%}"]
        if any(other.work for other in rows):
            cells.append(f"{row.work / row.median:.2f}" if row.work else "")
        if base:
            cells.append(f"{base.median / row.median:.2f}")
        if memory:
            cells.append("" if row.memory is None else f"{row.memory:.0f}")
        if memory and base:
            known = row.memory is not None and base.memory
            cells.append(f"{row.memory / base.memory:.2f}" if known else "")
        if rate:
            cells.append(f"{row.flops / row.median / rate:.1%}" if row.flops else "")
        table.add_row(*cells, *((row.extra or {}).get(key, "") for key in extra))
    # A fixed width, so that a log file holds the table as a terminal shows it.
    Console(width=130).print(table)
