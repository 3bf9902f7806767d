"""A step that went wrong: kept in a file, explained, and run again from it.

Tensors and plain data only, read without unpickling code; the model is described by names of
registered types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmseg_eomt.checkpoints.describe import plain, unwrap
from mmseg_eomt.checkpoints.torch_file import as_plain, load_sealed, save_sealed
from mmseg_eomt.engine.hooks.training_log import image_paths
from mmseg_eomt.engine.mixed_precision import NonFiniteError
from mmseg_eomt.engine.watch.first_nonfinite import Finding, StepInputs, trace_step
from mmseg_eomt.errors import listed
from mmseg_eomt.safe_write import replaced

FORMAT = "mmseg_eomt capture 1"
FOLDER = "nonfinite"
NEEDED = (
    *("step", "rank", "world_size", "seed", "precision", "loss_scale", "batches", "random"),
    *("mask_probs", "model", "state_dict", "finding"),
)


def write_capture(path: Path, inputs: StepInputs, facts: Mapping[str, Any]) -> None:
    """Write a step with all that is needed to run it again.

    Args:
        path: The file; its folder is made.
        inputs: Of the step.
        facts: The rest of ``NEEDED``; ``model`` is the model's config or None.

    Raises:
        OSError: If it cannot be written.
    """
    content = {
        "format": FORMAT,
        "step": inputs.step,
        "seed": inputs.seed,
        "batches": [_plain_batch(batch) for batch in inputs.batches],
        "random": inputs.random,
        "mask_probs": list(inputs.mask_probs),
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        save_sealed(as_plain(content, name="capture"), file)


def read_capture(path: str | Path) -> dict[str, Any]:
    """Read a capture on the CPU, without unpickling code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code, or is something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such capture. They lie in RUN/{FOLDER}/*.pth.")
    content = load_sealed(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path}: no capture of a step ({FORMAT!r}). Give a file of a run's folder {FOLDER}."
        )
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise ValueError(f"{path}: a damaged capture: it has no {', '.join(missing)}.")
    return content


def step_of(capture: Mapping[str, Any]) -> StepInputs:
    """The inputs of the step of a capture."""
    return StepInputs(
        step=int(capture["step"]),
        seed=int(capture["seed"]),
        batches=[_batch(stored) for stored in capture["batches"]],
        random=capture["random"],
        mask_probs=list(capture["mask_probs"]),
    )


def model_of(capture: Mapping[str, Any], *, source: str | Path) -> Any:
    """Build the model of a capture, with its weights.

    Raises:
        ValueError: If the capture has no description, or one that names anything but registered
            types.
    """
    config = capture["model"]
    if config is None:
        raise ValueError(
            f"{source}: does not describe its model, which was no config but an object. Build it "
            "yourself and call mmseg_eomt.engine.watch.capture.replay_capture(path, model=...)."
        )
    for name in _types(config):
        # A dotted name would be imported, whatever it is.
        if "." in name or MODELS.get(name) is None:
            raise ValueError(
                f"{source}: its model has the type {name!r}, which is not registered here. If it "
                "is one of your own, --config CONFIG imports what the config does."
            )
    model = MODELS.build(config)
    model.load_state_dict(capture["state_dict"], strict=True)
    return model


def plain_model_config(cfg: Any) -> dict[str, Any] | None:
    """The model of a run's config as plain data; None if it is no config.

    Weights to start from are left out: a capture holds the weights.
    """
    model = cfg.get("model") if cfg is not None else None
    if not isinstance(model, Mapping):
        return None
    config = plain(model)
    if cfg.get("data_preprocessor"):
        config.setdefault("data_preprocessor", plain(cfg["data_preprocessor"]))
    if isinstance(config.get("backbone"), dict):
        config["backbone"]["pretrained"] = None
    try:
        described: dict[str, Any] = as_plain(config, name="model")
    except TypeError:
        return None
    return described


def _types(config: Any) -> Iterator[str]:
    """Every ``type`` in a config."""
    if isinstance(config, Mapping):
        if "type" in config:
            yield str(config["type"])
        for value in config.values():
            yield from _types(value)
    elif isinstance(config, Sequence) and not isinstance(config, (str, bytes)):
        for value in config:
            yield from _types(value)


def _plain_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": list(batch["inputs"]),
        "samples": [_plain_sample(sample) for sample in batch["data_samples"]],
    }


def _plain_sample(sample: Any) -> dict[str, Any]:
    """Fields and meta information, as far as they are tensors and plain data."""
    stored: dict[str, Any] = {"meta": {}, "pixels": {}, "tensors": {}}
    for name, value in sample.metainfo_items():
        try:
            stored["meta"][name] = as_plain(value)
        except TypeError:
            continue  # what a dataset put there of its own; no step is computed from it
    for name, value in sample.items():
        if isinstance(value, PixelData):
            stored["pixels"][name] = dict(value.items())
        elif isinstance(value, Tensor):
            stored["tensors"][name] = value
    return stored


def _batch(stored: Mapping[str, Any]) -> dict[str, Any]:
    samples = []
    for item in stored["samples"]:
        sample = SegDataSample(metainfo=item["meta"])
        for name, fields in item["pixels"].items():
            sample.set_field(PixelData(**fields), name)
        for name, value in item["tensors"].items():
            sample.set_field(value, name, dtype=Tensor)
        samples.append(sample)
    return {"inputs": list(stored["inputs"]), "data_samples": samples}


def explained(runner: Any, error: NonFiniteError, recent: Sequence[StepInputs]) -> NonFiniteError:
    """The error with process, module, files and a capture; all processes call it together.

    The step is run again under observation on each process, with the weights that it did not
    change. One process writes the capture: the first that found something.

    Args:
        runner: In training.
        error: Of the optimiser wrapper, the same on all processes.
        recent: The last steps of this process.

    Returns:
        NonFiniteError: To raise in its place.
    """
    inputs = next((item for item in recent if item.step == error.step), None)
    if inputs is None:
        return error
    wrapper, model = runner.optim_wrapper, unwrap(runner.model)
    if not hasattr(model, "decode_head"):  # no segmentor: its step is not run again
        return NonFiniteError(
            f"Step {inputs.step + 1}: {error} No weight was changed by it. Images of this process: "
            f"{listed(_files(inputs, None), 8)}. Lower the learning rate, use precision bf16 or "
            "fp32, or look at these images.",
            step=inputs.step,
        )
    scaler = getattr(wrapper, "loss_scaler", None)
    loss_scale = 1.0 if scaler is None else float(scaler.get_scale())
    # A step that comes after this one may have left something there.
    wrapper.zero_grad()
    finding: Finding | None = None
    failure = ""
    try:
        finding = trace_step(model, inputs, precision=wrapper.precision, loss_scale=loss_scale)
    except (RuntimeError, ValueError) as problem:  # memory, above all: this needs more than a step
        failure = f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
    files = _files(inputs, finding)
    everyone = all_gather_object(
        {"finding": finding and finding.as_dict(), "files": files, "failure": failure}
    )
    found = [rank for rank, item in enumerate(everyone) if item["finding"]]
    writer = found[0] if found else 0
    path = Path(runner.work_dir) / FOLDER / f"step_{inputs.step + 1:06d}_rank{writer}.pth"
    state = whole_state(model)
    if get_rank() == writer:
        totals = getattr(model.decode_head, "totals", None)
        write_capture(
            path,
            inputs,
            {
                "rank": get_rank(),
                "world_size": get_world_size(),
                "precision": wrapper.precision,
                "loss_scale": loss_scale,
                "totals": totals,
                "model": plain_model_config(runner.cfg),
                "state_dict": state,
                "finding": finding and finding.as_dict(),
                "files": files,
                "error": str(error),
            },
        )
    # No process leaves before the file is there: the end of one ends the others.
    all_gather_object(None)
    return NonFiniteError(
        f"Step {inputs.step + 1}: {error} No weight was changed by it. "
        f"{_where(everyone, found)} It is kept in {path}; `python tools/replay.py {path}` runs it "
        "again. Look at these images and masks, lower the learning rate, or use precision bf16 or "
        "fp32; resume from an earlier checkpoint if a weight is not finite. "
        "optim_wrapper.stop_on_nonfinite=False trains on whatever happens.",
        step=inputs.step,
    )


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model, sharded or not, on the CPU; all processes call it together."""
    return {
        name: getattr(value, "full_tensor", lambda value=value: value)().detach().cpu()
        for name, value in model.state_dict().items()
    }


def _where(everyone: Sequence[dict[str, Any]], found: Sequence[int]) -> str:
    """One sentence about each process that found something, or about none."""
    world = len(everyone)
    if not found:
        failures = sorted({item["failure"] for item in everyone if item["failure"]})
        why = f" ({'; '.join(failures)})" if failures else ""
        return (
            "Run again, every value of every process is finite: it is the sum over gradients "
            f"that is not, or the device does not repeat itself{why}. Images of rank 0: "
            f"{listed(everyone[0]['files'], 8)}."
        )
    parts = []
    for rank in found[:4]:
        finding = Finding.from_dict(everyone[rank]["finding"])
        parts.append(
            f"Rank {rank} of {world}: the first such value is {finding}. Images: "
            f"{listed(everyone[rank]['files'], 8)}."
        )
    if len(found) > 4:
        parts.append(f"So it is on {len(found) - 4} more ranks.")
    return " ".join(parts)


def _files(inputs: StepInputs, finding: Finding | None) -> list[str]:
    """The files that the finding is about, or else all of the step."""
    if finding is None or finding.micro_batch < 0:
        return [path for batch in inputs.batches for path in image_paths(batch)]
    paths = image_paths(inputs.batches[finding.micro_batch])
    return [paths[row] for row in finding.rows] if finding.rows else paths


@dataclass(frozen=True)
class Replay:
    """What a captured step gave, then and now.

    Attributes:
        step (int): Its number, from 1 as in the log.
        rank (int): Process that it was captured on.
        files (list[str]): Images that the finding is about.
        recorded (Finding | None): The first value that was not finite in training.
        found (Finding | None): The first one now.
    """

    step: int
    rank: int
    files: list[str]
    recorded: Finding | None
    found: Finding | None

    @property
    def same(self) -> bool:
        """Whether both are in the same pass of the same module."""
        then, now = self.recorded, self.found
        if then is None or now is None:
            return then is now
        return (then.phase, then.module) == (now.phase, now.module)


def replay_capture(
    path: str | Path,
    *,
    config: str | Path | None = None,
    model: nn.Module | None = None,
    device: str | None = None,
) -> Replay:
    """Run a captured step again, with its weights, images and random numbers.

    Args:
        path: `nonfinite/step_N_rankR.pth` of a run's folder. Nothing in it is executed.
        config: Config of the run, for its `custom_imports`. Defaults to None.
        model: The model, if it was no config; it gets the weights of the capture.
        device: Where to run. Defaults to None: CUDA if there is a device, else the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no capture, or its model cannot be built.
    """
    capture = read_capture(path)
    if config is not None:
        Config.fromfile(config)  # imports what the config does
    init_default_scope("mmseg")
    if model is None:
        segmentor: Any = model_of(capture, source=path)
    else:
        segmentor = model
        segmentor.load_state_dict(capture["state_dict"])
    segmentor = segmentor.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if hasattr(segmentor.decode_head, "set_place"):
        segmentor.decode_head.set_place(int(capture["rank"]), int(capture["world_size"]))
    totals = capture.get("totals")
    found = trace_step(
        segmentor,
        step_of(capture),
        precision=str(capture["precision"]),
        loss_scale=float(capture["loss_scale"]),
        totals=None if totals is None else totals.to(next(segmentor.parameters()).device),
    )
    recorded = capture["finding"]
    return Replay(
        step=int(capture["step"]) + 1,
        rank=int(capture["rank"]),
        files=[str(name) for name in capture.get("files", [])],
        recorded=None if recorded is None else Finding.from_dict(recorded),
        found=found,
    )
