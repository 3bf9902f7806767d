"""What happens when a step was not finite: on which process, where, and a capture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor, nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.engine.optimizers.non_finite import NonFiniteError
from mmseg_eomt.engine.step_record import image_paths, shortened
from mmseg_eomt.engine.watch.capture import FOLDER, plain_model_config, write_capture
from mmseg_eomt.engine.watch.first_nonfinite import Finding
from mmseg_eomt.engine.watch.traced_step import StepInputs, trace_step


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
            f"{shortened(_files(inputs, None))}. Lower the learning rate, use precision bf16 or "
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
            f"{shortened(everyone[0]['files'])}."
        )
    parts = []
    for rank in found[:4]:
        finding = Finding.from_dict(everyone[rank]["finding"])
        parts.append(
            f"Rank {rank} of {world}: the first such value is {finding}. Images: "
            f"{shortened(everyone[rank]['files'])}."
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
