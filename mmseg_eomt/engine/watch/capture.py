"""A training step that was not finite, in a file that can be run again.

Tensors and plain data only, read without unpickling code; the model is described by names of
registered types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from mmseg_eomt.checkpoints.describe import plain
from mmseg_eomt.checkpoints.torch_file import as_plain, load_sealed, save_sealed
from mmseg_eomt.engine.watch.traced_step import StepInputs
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
            "yourself and call mmseg_eomt.apis.replay.replay_capture(path, model=...)."
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
