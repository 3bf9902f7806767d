"""A new task started from the weights of another, shown before the first step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmseg.registry import HOOKS, MODELS
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.start_rules import Fitted, Rule, check_reuse, fit
from mmseg_eomt.checkpoints.weights_file import (
    is_safetensors,
    load_state,
    read_header,
    read_weights,
)
from mmseg_eomt.header import BACKBONE_TYPES, HEADER_KEY, ModelHeader
from mmseg_eomt.models.architectures import Architecture, resolve_architecture

_LOG_WIDTH = 120


@HOOKS.register_module()
class StartFromHook(Hook):  # type: ignore[misc]
    """Loads the weights of another run before the first step, and logs what became of them.

    The rules are those of `start_from`. A resumed run has its weights already and is left alone.

    Args:
        checkpoint (str): Lean weights or a training checkpoint of mmseg_eomt.
        reuse_class_head (bool | str): False, True or 'by_name'. Defaults to False.
    """

    # Before everything else that looks at the weights.
    priority = "VERY_HIGH"

    def __init__(self, checkpoint: str, *, reuse_class_head: bool | str = False) -> None:
        check_reuse(reuse_class_head)
        self.checkpoint = checkpoint
        self.reuse_class_head = reuse_class_head

    def before_train(self, runner: Any) -> None:
        """Loads the weights, on every process."""
        if runner.iter > 0:
            return
        fitted = start_from(
            runner.model,
            self.checkpoint,
            classes=list(runner.train_loop.dataloader.dataset.metainfo["classes"]),
            reuse_class_head=self.reuse_class_head,
        )
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                # It copied the model before the weights were here.
                hook.ema_model.module.load_state_dict(unwrap(runner.model).state_dict())
        tables = start_tables(_with_normalisation(fitted, runner.cfg))
        runner.logger.info(f"Starting from {self.checkpoint}:\n{as_text(tables)}")


def start_from(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str],
    reuse_class_head: bool | str = False,
) -> Fitted:
    """Load the weights of another task into a model.

    Backbone, queries, mask head and upscale blocks are taken over. Where sizes differ:

    * queries: the first min(Q, Q') are taken; more begin anew, fewer leave the rest out.
    * patch size: the kernel of the patch embedding is resampled as timm does (pseudo-inverse of a
      bicubic resize: FlexiViT, arXiv 2212.08013).
    * image size (or patch size): DINOv2's position table is resampled to the new grid (bicubic,
      antialiased); DINOv3's rotary positions fit any grid.
    * input channels: the first ones that both have are taken; new ones are zero, so that they have
      no influence at first. To one channel kernels are added up; one channel is shared evenly.
    * upscale blocks: the first ones that both have, counted from the patch grid; the rest begins
      anew, or is left out.
    * joint blocks: they are blocks of the backbone, and so are all taken.
    * class head: anew (False); as it is, for the same classes in the same order (True); or row by
      row ('by_name'): classes of exactly the same name, but for space around it, keep weight and
      bias, the others begin anew, "no object" is kept.

    What begins anew keeps the values that `model` has. Another architecture is refused. Nothing in
    the model changes before all fits.

    Args:
        model: The model of the new task.
        path: Lean weights or a training checkpoint of mmseg_eomt.
        classes: Class names of the new task.
        reuse_class_head: False, True or 'by_name'.

    Returns:
        What was loaded, with the rule for each part and the header of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another program or a backbone alone, if it does not
            fit, or the classes do not.
    """
    header, state = read_checkpoint(path)
    fitted = fit(
        state,
        header,
        model,
        classes=list(classes),
        reuse_class_head=reuse_class_head,
        source=path,
    )
    load_state(model, fitted.state, source=path)
    return fitted


def check_checkpoint(cfg: Config, checkpoint: str | Path | None, reuse_class_head: Any) -> None:
    """Check all that can be known of a start without the dataset.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none to start from, or of another architecture.
    """
    check_reuse(reuse_class_head)
    if checkpoint is None:
        if reuse_class_head:
            raise ValueError(
                f"reuse_class_head={reuse_class_head!r} takes the class head of a checkpoint, and "
                "none is given: add checkpoint (--checkpoint PATH)."
            )
        return
    check_architecture(inspect_checkpoint(checkpoint)[0], cfg.model.backbone, checkpoint)


def set_checkpoint(
    cfg: Config, checkpoint: str | Path, *, reuse_class_head: bool | str, classes: Sequence[str]
) -> None:
    """Make a run start from a checkpoint that fits its config.

    Args:
        cfg: A resolved config; changed in place.
        checkpoint: See `start_from`.
        reuse_class_head: See `start_from`.
        classes: Class names of the new task.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not fit the config.
    """
    # The file brings the backbone: nothing else has to be fetched.
    cfg.model.backbone.pretrained = None
    hooks = [hook for hook in cfg.get("custom_hooks") or () if hook["type"] != "StartFromHook"]
    start = {
        "type": "StartFromHook",
        "checkpoint": str(Path(checkpoint).resolve()),
        "reuse_class_head": reuse_class_head,
    }
    cfg.custom_hooks = [*hooks, start]
    planned_start(cfg, classes)


def planned_start(cfg: Config, classes: Sequence[str]) -> Fitted | None:
    """Try a config's start without memory; None if it starts from no checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not fit the config.
    """
    for hook in cfg.get("custom_hooks") or ():
        if hook["type"] != "StartFromHook":
            continue
        path = hook["checkpoint"]
        header, shapes = inspect_checkpoint(path)
        check_architecture(header, cfg.model.backbone, path)
        with torch.device("meta"):
            model = MODELS.build(copy.deepcopy(cfg.model))
        fitted = fit(
            shapes,
            header,
            model,
            classes=list(classes),
            reuse_class_head=hook.get("reuse_class_head", False),
            source=path,
        )
        load_state(model, fitted.state, source=path)
        return _with_normalisation(fitted, cfg)
    return None


def _with_normalisation(fitted: Fitted, cfg: Any) -> Fitted:
    """Say so if a run normalises its images otherwise than the file's task did."""
    preprocessor = cfg["model"].get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    rules = []
    for name, found in (("mean", fitted.header.mean), ("std", fitted.header.std)):
        wanted = tuple(float(number) for number in preprocessor.get(name) or ())
        if wanted != tuple(float(number) for number in found):
            rules.append(
                Rule(f"pixel {name}", _numbers(found), _numbers(wanted), "this run's is used")
            )
    return dataclasses.replace(fitted, rules=[*fitted.rules, *rules])


def start_tables(fitted: Fitted) -> list[Table]:
    """Show what becomes of each part, and with 'by_name' of each class."""
    parts = Table(title="Start", title_justify="left", box=box.ASCII)
    for name in ("part", "file", "this run", "what is done"):
        parts.add_column(name, overflow="fold")
    for rule in fitted.rules:
        parts.add_row(*map(Text, (rule.part, rule.found, rule.wanted, rule.done)))
    if not fitted.classes:
        return [parts]
    rows = Table(title="Class head by name", title_justify="left", box=box.ASCII)
    for name in ("class", "row of the file", "note"):
        rows.add_column(name, overflow="fold")
    for row in fitted.classes:
        origin = "begins anew" if row.source is None else str(row.source)
        name = "(no object)" if row.name is None else row.name
        # Text, not str: a name may look like markup.
        rows.add_row(*map(Text, (name, origin, row.hint)))
    return [parts, rows]


def as_text(tables: Iterable[Table]) -> str:
    """Render tables for a log file."""
    console = Console(file=StringIO(), width=_LOG_WIDTH, color_system=None)
    for table in tables:
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.rstrip()


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


# What may differ between two models of one architecture; rules of their own deal with it.
_NOT_ARCHITECTURE = ("patch_size", "num_joint_blocks", "timm_name", "timm_tag", "init_values")
_DEFAULT_ARCH = {"dinov2": "vits14", "dinov3": "vits16"}


def inspect_checkpoint(path: str | Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Read the header, and names and shapes of the tensors of a whole model.

    Args:
        path: Lean weights or a training checkpoint of mmseg_eomt.

    Returns:
        The header, and tensors by name without memory (on the 'meta' device).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, damaged, of another program, or a backbone alone.
    """
    path = _existing_file(path)
    if is_safetensors(path):
        header, tensors = _inspect_safetensors(path)
    else:
        header, tensors = _read_training_checkpoint(path)
        tensors = {name: value.to("meta") for name, value in tensors.items()}
    _check_whole_model(tensors, path)
    return header, tensors


def read_checkpoint(path: str | Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Read a whole model; every number in it is finite.

    Returns:
        The header and the tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `inspect_checkpoint`, or if a weight is no finite number.
    """
    path = _existing_file(path)
    if is_safetensors(path):
        _inspect_safetensors(path)
        header, state = read_weights(path)
    else:
        header, state = _read_training_checkpoint(path)
    _check_whole_model(state, path)
    broken = [
        name
        for name, value in state.items()
        if not value.is_floating_point() or not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} tensors hold NaN, infinity or no floating-point numbers, such "
            f"as {', '.join(broken[:4])}. The file is damaged or its training diverged: take an "
            "earlier one."
        )
    return header, state


def check_architecture(header: ModelHeader, backbone: Mapping[str, Any], path: str | Path) -> None:
    """Check that a file's backbone has the architecture of a config's backbone.

    Compared are family, width, depth, attention heads, MLP and registers; names may differ. Patch
    size, image size, channels and joint blocks may differ too.

    Args:
        header: Of the file.
        backbone: `model.backbone` of the config.
        path: Name of the file for the error.

    Raises:
        ValueError: If the architecture is another one.
    """
    family = str(backbone["type"]).rsplit(".", 1)[-1].lower().replace("timmvit", "timm")
    if family not in BACKBONE_TYPES:
        raise ValueError(
            f"{path}: this run trains a {backbone['type']}, and only "
            f"{', '.join(BACKBONE_TYPES.values())} can start from a checkpoint."
        )
    wanted_name = backbone.get("name" if family == "timm" else "arch", _DEFAULT_ARCH.get(family))
    if family == "timm" or header.family == "timm":
        # The tag behind the dot names weights, not an architecture.
        found: Any = (header.family, str(header.architecture).split(".")[0])
        wanted: Any = (family, str(wanted_name).split(".")[0])
        kwargs = header.backbone_args.get("model_kwargs") or {}
        if found == wanted and dict(kwargs) != dict(backbone.get("model_kwargs") or {}):
            found, wanted = (*found, kwargs), (*wanted, backbone.get("model_kwargs") or {})
    else:
        found = _sizes(header.family, header.architecture, header.backbone_args)
        wanted = _sizes(family, wanted_name, backbone)
    if found == wanted:
        return
    differences = ""
    if isinstance(found, dict):
        differences = "; ".join(
            f"{name} {found[name]} in the file, {wanted[name]} here"
            for name in found
            if found[name] != wanted[name]
        )
        differences = f" ({differences})"
    raise ValueError(
        f"{path}: holds {header.family}/{_name(header.architecture)}, but this run trains "
        f"{family}/{_name(wanted_name)}{differences}: take the config (model name) of that "
        "architecture."
    )


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: is a folder. Give a weights file, such as exported/best.safetensors of a "
            f"run. {_convert(path)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file (.safetensors or .pth).")
    return path


def _read_training_checkpoint(path: Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    try:
        return read_weights(path)
    except ValueError as error:
        raise ValueError(f"{error} {_convert(path)}") from error


def _check_whole_model(tensors: Mapping[str, Tensor], path: Path) -> None:
    if not any(name.startswith("decode_head.") for name in tensors):
        raise ValueError(
            f"{path}: holds a backbone alone, but a run starts from a whole model (backbone, "
            "queries, mask and class head). Give it to --backbone-weights "
            "(model_args={'backbone_weights': ...}) instead."
        )


def _inspect_safetensors(path: Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            shapes = {
                name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names
            }
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged safetensors file ({error}). Copy or export it again."
        ) from error
    if HEADER_KEY not in metadata:
        if shapes and all(name.startswith("backbone.") for name in shapes):
            _check_whole_model(shapes, path)
        raise ValueError(
            f"{path}: no model header ('{HEADER_KEY}') in the file, so it was not written by "
            f"mmseg_eomt. {_convert(path)}"
        )
    return read_header(path), shapes


def _convert(path: Path) -> str:
    return (
        "Weights of another program are converted first: python tools/convert_checkpoint.py "
        f"{path} OUT.safetensors, then start from OUT.safetensors. A pretrained backbone goes to "
        "--backbone-weights (model_args={'backbone_weights': ...}) as it is."
    )


def _sizes(family: str, arch: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    sizes: Architecture = resolve_architecture(family, arch)
    if arguments.get("registers") is False:
        sizes = dataclasses.replace(sizes, num_registers=0)
    found = dataclasses.asdict(sizes)
    return {name: value for name, value in found.items() if name not in _NOT_ARCHITECTURE}


def _name(architecture: Any) -> str:
    return architecture if isinstance(architecture, str) else str(dict(architecture))
