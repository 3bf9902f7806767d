"""Exported models against PyTorch: mIoU and latency of the same files, on the same pictures.

End to end is from a picture on disk to its label map, at batch 1, as a service sees it; model only
is the exported graph on one window, from normalised pixels to label map and scores. The reference
is the checkpoint in PyTorch, eager; with --compile it is also compiled. For "model only" PyTorch
runs the graph that was exported, so that both do the same work.

    python tools/benchmarks/deployed.py best.safetensors fp32.onnx fp16.onnx int8.onnx \\
        --data DATA.yaml --threads 2 --compile
    python tools/benchmarks/deployed.py best.safetensors fp32.onnx --threads 2 --pictures 0
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleave, machine, make_parser, set_up
from rich.console import Console
from rich.table import Table

EAGER, COMPILED = "PyTorch, eager", "PyTorch, compiled"
WARM_UP = 3

Work = Callable[[int], object]


@dataclass
class Result:
    """One contestant.

    Attributes:
        name (str): PyTorch, or the exported file.
        miou (float, optional): In percent; None without a dataset.
        model (list[float]): Seconds of the model alone, one window.
        end_to_end (list[float]): Seconds of an image from file to label map.
    """

    name: str
    miou: float | None
    model: list[float]
    end_to_end: list[float]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("checkpoint", help="the weights that the models were exported from")
    parser.add_argument("exported", nargs="+", help=".onnx or .engine files")
    parser.add_argument("--data", metavar="DATA.yaml", help="measure mIoU, and time its pictures")
    parser.add_argument("--pictures", type=int, default=20, help="timed end to end (20)")
    parser.add_argument("--images", type=int, help="for mIoU, at most (all of the split)")
    parser.add_argument("--compile", action="store_true", help="time compiled PyTorch as well")
    parser.add_argument("--json", metavar="FILE", help="write all times there")
    args = parser.parse_args(arguments)
    if args.data is None and args.pictures:
        parser.error("timing pictures needs --data; or give --pictures 0 for the model alone")
    return args


def network(checkpoint: str, metadata: Any, device: str, *, compile: bool) -> Work:
    """The graph that was exported, run by PyTorch on one window."""
    from mmseg_eomt import load_model
    from mmseg_eomt.deploy.exporter import DeployGraph

    model = load_model(checkpoint, device="cpu")
    graph: Any = DeployGraph(model.segmentor, metadata).to(device)
    images = torch.from_numpy(window(metadata)).to(device)
    if compile:
        graph = torch.compile(graph, dynamic=False)

    @torch.inference_mode()
    def run(_: int) -> object:
        return [output.cpu() for output in graph(images)]

    return run


def window(metadata: Any) -> np.ndarray[Any, Any]:
    """One made picture of the model's size, as it takes it."""
    from mmseg_eomt.deploy.pictures import graph_input, made_pictures

    size = (metadata.height, metadata.width)
    pictures = made_pictures(1, size, channels=metadata.model.in_channels)
    batch = 1 if "batch" in metadata.dynamic else metadata.batch_size
    return graph_input(pictures * batch, metadata)


def contestants(args: argparse.Namespace) -> tuple[dict[str, Work], dict[str, Any]]:
    """Model-only work and predictors of file paths, by name."""
    from mmseg_eomt import load_model, optimize_for_inference
    from mmseg_eomt.deploy import Session
    from mmseg_eomt.deploy.runners import open_runner

    models: dict[str, Work] = {}
    predictors: dict[str, Any] = {}
    on_gpu = args.device == "cuda"
    providers = [f"{'CUDA' if on_gpu else 'CPU'}ExecutionProvider"]
    for position, path in enumerate(args.exported):
        options = {} if path.endswith(".engine") else dict(
            providers=providers, threads=None if on_gpu else args.threads
        )  # fmt: skip
        runner = open_runner(path, **options)
        assert runner.metadata is not None, "Session has checked it"
        if position == 0:
            models[EAGER] = network(args.checkpoint, runner.metadata, args.device, compile=False)
            if args.compile:
                models[COMPILED] = network(
                    args.checkpoint, runner.metadata, args.device, compile=True
                )
        name = Path(path).name
        images = window(runner.metadata)
        models[name] = lambda _, run=runner.run, images=images: run(images)
        predictors[name] = Session(runner)
    eager = load_model(args.checkpoint, device=args.device)
    predictors = {EAGER: eager, **predictors}
    if args.compile:
        predictors[COMPILED] = optimize_for_inference(
            load_model(args.checkpoint, device=args.device), compile="default"
        )
    return models, predictors


def measure_miou(predictors: Mapping[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """MIoU in percent by name."""
    from mmseg_eomt.apis.evaluate import evaluate_files

    header = predictors[EAGER].header
    return {
        name: evaluate_files(
            predictor.predict,
            args.data,
            class_ids=header.class_ids,
            classes=header.classes,
            most=args.images,
        ).miou
        for name, predictor in predictors.items()
    }


def picture_paths(args: argparse.Namespace) -> list[str]:
    """Validation images to time."""
    from mmseg_eomt.datasets.data_description import load_data
    from mmseg_eomt.datasets.file_pairs import every_nth, find_pairs

    description = load_data(args.data, check_splits=["val"])
    pairs = [pair for folders in description.folders("val") for pair in find_pairs(folders)]
    return [pair.image for pair in every_nth(pairs, args.pictures)]


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    return float(np.percentile(seconds, share)) * 1e3


def print_results(results: list[Result], args: argparse.Namespace) -> None:
    """A table with ratios to eager PyTorch."""
    base = next(result for result in results if result.name == EAGER)
    parts = ["model"] + (["end to end"] if base.end_to_end else [])
    columns = ["", *(["mIoU"] if base.miou is not None else [])]
    for part in parts:
        columns += [f"{part}: p50 ms", "p95 ms", "times as fast"]
    what = f"{WARM_UP} turns of warm-up, {args.repeats} of the model"
    if base.end_to_end:
        what += f", {args.pictures} pictures end to end"
    table = Table(title=f"batch 1, {args.device}; {what}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for result in results:
        row = [result.name] + ([f"{result.miou:.2f}"] if result.miou is not None else [])
        for part in parts:
            own, other = (
                item.model if part == "model" else item.end_to_end for item in (result, base)
            )
            ratio = statistics.median(other) / statistics.median(own)
            row += [f"{percentile(own, 50):.1f}", f"{percentile(own, 95):.1f}", f"{ratio:.2f}"]
        table.add_row(*row)
    Console(width=130).print(table)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Measures, prints, and returns the rows."""
    args = parse(arguments)
    set_up(args)
    print(machine(args.device, args.threads), f", onnxruntime {version('onnxruntime')}", sep="")
    models, predictors = contestants(args)
    miou = measure_miou(predictors, args) if args.data else {}
    alone = interleave(models, repeats=args.repeats, device=args.device, warm_up=WARM_UP)
    whole: dict[str, list[float]] = {name: [] for name in predictors}
    if args.pictures:
        paths = picture_paths(args)
        whole = interleave(
            {
                name: lambda turn, predict=predictor.predict: predict(paths[turn % len(paths)])
                for name, predictor in predictors.items()
            },
            repeats=len(paths),
            device=args.device,
            warm_up=WARM_UP,
        )
    results = [Result(name, miou.get(name), alone[name], whole[name]) for name in models]
    print_results(results, args)
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(result) for result in results], indent=2))
    return results


if __name__ == "__main__":
    main()
