"""Does pretraining pay? Trains EoMT from several backbones, with the same budget and seeds.

    python tools/compare.py CONFIG --data data.yaml --out DIR \\
        --starts none runs/pretrained/exported/backbone.safetensors --seeds 0 1 2

Each run is `tools/train.py` of mmseg_eomt with that start as its `--backbone-weights`. An
interrupted comparison goes on where it stopped. Writes comparison.json and comparison.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmseg_eomt.commands.tool import run_tool
from mmseg_eomt.safe_write import replaced, write_text

TRAIN = Path(__file__).resolve().parents[3] / "tools" / "train.py"
SETTINGS = "settings.json"
Curve = dict[int, float]  # step -> mIoU in percent


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train EoMT from several backbones with the same budget and seeds."
    )
    parser.add_argument("config", type=Path, help="config of EoMT, as for tools/train.py")
    parser.add_argument("--data", type=Path, required=True, metavar="DATA.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument(
        "--starts",
        nargs="+",
        default=["none"],
        metavar="PATH|NAME|none",
        help="--backbone-weights of each contestant; the first is the reference (none)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument(
        "--train-options",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="...",
        help="last: what else tools/train.py gets, e.g. --image-size 160 --cfg-options ...",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    """Train what is missing, print the table, write the results as comparison.json.

    Raises:
        FileNotFoundError: If the config, the data or a file of weights is missing.
        ValueError: If `out` holds a comparison of other settings.
        ChildProcessError: If a run fails; its output says why.
    """
    for path in (args.config, args.data):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file.")
    names = name_starts(args.starts)
    _keep_settings(args)
    runs = [(name, seed) for seed in args.seeds for name in names]
    curves: dict[str, dict[str, Curve]] = {name: {} for name in names}
    for name, seed in track(runs, "runs", disable=not sys.stdout.isatty()):
        curves[name][str(seed)] = _run(args, names[name], seed, args.out / name / f"seed_{seed}")
    results = summarise(curves)
    write_text(args.out / "comparison.json", json.dumps(results, indent=2) + "\n")
    draw(curves, args.out / "comparison.png")
    print_results(results)


def name_starts(starts: Sequence[str]) -> dict[str, str]:
    """Short folder names of the starts, in their order.

    Raises:
        FileNotFoundError: If something that looks like a file is none.
        ValueError: If a start is given twice.
    """
    names: dict[str, str] = {}
    for start in starts:
        path = Path(start)
        if path.suffix in (".safetensors", ".pth", ".pt", ".bin") and "://" not in start:
            if not path.is_file():
                raise FileNotFoundError(f"--starts: {start}: no such file of weights.")
            start = str(path.resolve())
        if start in names.values():
            raise ValueError(f"--starts has {start} twice: the seeds repeat a start.")
        name = path.stem or start
        # backbone.safetensors of two runs: the folders tell them apart.
        for parent in path.parents:
            if name not in names:
                break
            name = f"{parent.name}_{name}"
        names[name if name not in names else f"{name}_{len(names)}"] = start
    return names


def _keep_settings(args: argparse.Namespace) -> None:
    """Notes what all runs share, and refuses a folder of another comparison."""
    settings = {
        "config": args.config.read_text(encoding="utf-8"),
        "data": args.data.read_text(encoding="utf-8"),
        "train_options": args.train_options,
    }
    path = args.out / SETTINGS
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in settings if old.get(name) != settings[name]]
        if changed:
            raise ValueError(
                f"{args.out} holds a comparison with other settings ({', '.join(changed)}), and "
                "runs of both would not be comparable: give another --out."
            )
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _run(args: argparse.Namespace, start: str, seed: int, folder: Path) -> Curve:
    """Train one contestant, unless it is done, and return its validation scores."""
    done = folder / "done"
    if not done.is_file():
        command = [sys.executable, str(TRAIN), str(args.config), "--data", str(args.data)]
        command += ["--work-dir", str(folder), "--seed", str(seed), "--backbone-weights", start]
        command += ["--resume", *args.train_options]
        print(f"{folder}: training", flush=True)
        log = args.out / f"{folder.parent.name}_{folder.name}.log"
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        if code:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
            raise ChildProcessError(f"{folder}: training failed ({code}); {log} ends:\n{tail}")
        done.touch()
    curve = read_scores(folder)
    if not curve:
        raise ValueError(f"{folder}: no validation in its logs: let the config validate.")
    return curve


def read_scores(folder: Path) -> Curve:
    """Return step -> mIoU of a run; of a resumed run, of all its parts."""
    curve: Curve = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "mIoU" in record:
                curve[int(record["step"])] = float(record["mIoU"])
    return curve


def summarise(curves: dict[str, dict[str, Curve]]) -> dict[str, Any]:
    """Last mIoU of each run, mean and standard deviation of each start, and what it gains.

    `gain` is the mean of the differences to the first start with the same seed.
    """
    results: dict[str, Any] = {}
    reference = next(iter(curves.values()))
    for name, runs in curves.items():
        last = {seed: curve[max(curve)] for seed, curve in runs.items()}
        gains = [score - reference[seed][max(reference[seed])] for seed, score in last.items()]
        results[name] = {
            "mIoU": last,
            "mean": statistics.mean(last.values()),
            "std": statistics.stdev(last.values()) if len(last) > 1 else None,
            "gain": statistics.mean(gains),
            "gain_std": statistics.stdev(gains) if len(gains) > 1 else None,
            "curves": runs,
        }
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print a line for each start."""
    table = Table(title="mIoU of the last step, in percent", title_justify="left")
    table.add_column("start")
    for column in ("each seed", "mean", "std", "gain", "std of gain"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        numbers = [result[key] for key in ("mean", "std", "gain", "gain_std")]
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(name, " ".join(f"{x:.2f}" for x in result["mIoU"].values()), *cells)
    Console(width=100).print(table)


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw mIoU against the step: a thin line for each seed, a thick one for the mean."""
    from matplotlib.figure import Figure  # no window is opened

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, runs) in enumerate(curves.items()):
        color = f"C{index}"
        for curve in runs.values():
            axes.plot(list(curve), list(curve.values()), color=color, alpha=0.35, linewidth=1)
        shared = sorted(set.intersection(*(set(curve) for curve in runs.values())))
        mean = [statistics.mean(curve[step] for curve in runs.values()) for step in shared]
        axes.plot(shared, mean, color=color, linewidth=2.5, marker="o", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.3)
    axes.legend(title="start")
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(compare, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
