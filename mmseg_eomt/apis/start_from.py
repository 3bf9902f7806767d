"""Starting a new task from the weights of another: what is taken over, and what begins anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from torch import Tensor, nn

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.header import ModelHeader
from mmseg_eomt.checkpoints.lean import load_state, read_header, read_weights

CLASS_HEAD = "decode_head.class_head."


@HOOKS.register_module()
class StartFromHook(Hook):  # type: ignore[misc]
    """Loads the weights of another run before the first step.

    Backbone, queries, mask head and upscale blocks are taken over. The class head starts anew
    unless `reuse_class_head`. A resumed run has its weights already and is left alone.

    Args:
        checkpoint (str): Lean weights or a training checkpoint of mmseg_eomt.
        reuse_class_head (bool): Take the class head over too, for the same classes. Defaults to
            False.
    """

    # Before EMAHook and everything else that looks at the weights.
    priority = "VERY_HIGH"

    def __init__(self, checkpoint: str, *, reuse_class_head: bool = False) -> None:
        self.checkpoint = checkpoint
        self.reuse_class_head = reuse_class_head

    def before_train(self, runner: Any) -> None:
        """Loads the weights, on every process."""
        if runner.iter > 0:
            return
        classes = list(runner.train_loop.dataloader.dataset.metainfo["classes"])
        start_from(
            runner.model,
            self.checkpoint,
            classes=classes,
            reuse_class_head=self.reuse_class_head,
        )
        kept = "with" if self.reuse_class_head else "without"
        runner.logger.info(f"Starting from {self.checkpoint}, {kept} its class head.")


def start_from(
    model: nn.Module, path: str | Path, *, classes: list[str], reuse_class_head: bool = False
) -> ModelHeader:
    """Load the weights of another task into a model.

    Args:
        model: The model of the new task.
        path: Lean weights or a training checkpoint of mmseg_eomt.
        classes: Class names of the new task.
        reuse_class_head: Take the class head over too.

    Returns:
        The header of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not fit: another architecture, patch size, image size or
            number of queries, or other classes with `reuse_class_head`.
    """
    header, state = read_weights(path)
    if reuse_class_head:
        _check_classes(header, classes, path)
        load_state(model, state, source=path)
        return header
    own: dict[str, Tensor] = unwrap(model).state_dict()
    anew = {name: value for name, value in own.items() if name.startswith(CLASS_HEAD)}
    taken = {name: value for name, value in state.items() if not name.startswith(CLASS_HEAD)}
    load_state(model, {**taken, **anew}, source=path)
    return header


def set_checkpoint(
    cfg: Config, checkpoint: str | Path, *, reuse_class_head: bool, classes: list[str]
) -> None:
    """Make a run start from a checkpoint, checked against the config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not fit the config.
    """
    header = read_header(checkpoint)
    backbone = cfg.model.backbone
    family = str(backbone.type).lower().replace("timmvit", "timm")
    arch = backbone.get("name" if family == "timm" else "arch")
    if (family, arch) != (header.family, header.architecture) and not isinstance(arch, dict):
        raise ValueError(
            f"{checkpoint}: holds {header.family}/{header.architecture}, but this run trains "
            f"{family}/{arch}: take the config (model name) of that architecture."
        )
    if reuse_class_head:
        _check_classes(header, classes, checkpoint)
    # The file brings the backbone: nothing else has to be fetched.
    backbone.pretrained = None
    hooks = [hook for hook in cfg.get("custom_hooks") or () if hook["type"] != "StartFromHook"]
    hooks.append(
        {
            "type": "StartFromHook",
            "checkpoint": str(Path(checkpoint).resolve()),
            "reuse_class_head": reuse_class_head,
        }
    )
    cfg.custom_hooks = hooks


def _check_classes(header: ModelHeader, classes: list[str], path: str | Path) -> None:
    if list(header.classes) != list(classes):
        raise ValueError(
            f"{path}: reuse_class_head=True needs the same classes in the same order. The file has "
            f"{list(header.classes)}, the dataset {list(classes)}. Leave reuse_class_head=False to "
            "start the class head anew."
        )
