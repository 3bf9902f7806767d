"""What a model config leaves open, taken from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmseg_eomt.checkpoints.describe import plain
from mmseg_eomt.checkpoints.torch_file import read_training_checkpoint
from mmseg_eomt.checkpoints.weights_file import is_safetensors, read_weights
from mmseg_eomt.header import (
    BACKBONE_TYPES,
    HEADER_KEY,
    ModelHeader,
    model_config,
)


@dataclass(frozen=True)
class CheckpointModel:
    """The model of a checkpoint.

    Attributes:
        model (dict): Its config, complete.
        state (dict[str, Tensor]): Its weights.
        header (ModelHeader, optional): What the file says about it; None for checkpoints that
            MMSegmentation wrote without this package.
        dataset_meta (dict): 'classes' and 'palette', as far as the file knows them.
    """

    model: dict[str, Any]
    state: dict[str, Tensor]
    header: ModelHeader | None
    dataset_meta: dict[str, Any]


def model_of_checkpoint(model: Mapping[str, Any], checkpoint: str | Path) -> CheckpointModel:
    """Complete a model config with what a checkpoint says.

    A file of this package says all: the header wins over the config, but for how windows are
    batched. Of others the config says all but the number of classes.

    Args:
        model: `model` of a config.
        checkpoint: Lean weights or a training checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another backbone than the config.
    """
    path = Path(checkpoint)
    header, dataset_meta = None, {}
    if path.is_file() and not is_safetensors(path):
        stored = read_training_checkpoint(path)
        state = stored["state_dict"]
        if HEADER_KEY in stored:
            header = ModelHeader.from_json(str(stored[HEADER_KEY]), source=str(path))
        else:
            dataset_meta = dict((stored.get("meta") or {}).get("dataset_meta") or {})
    else:
        header, state = read_weights(path)
    given = plain(copy.deepcopy(model))
    if header is None:
        head = given["decode_head"]
        classes = len(state["decode_head.class_head.bias"]) - 1
        if head.get("num_classes") not in (None, classes):
            raise ValueError(
                f"{path}: trained for {classes} classes, but model.decode_head.num_classes of the "
                f"config is {head['num_classes']}: take the config it was trained with."
            )
        head["num_classes"] = classes
        given["backbone"]["pretrained"] = None
        return CheckpointModel(given, state, None, dataset_meta)
    _check_backbone(path, header, given["backbone"])
    complete = model_config(header)
    for name in ("window_batch", "score_memory"):
        if name in (given.get("test_cfg") or {}):
            complete["test_cfg"][name] = given["test_cfg"][name]
    dataset_meta = {
        "classes": list(header.classes),
        "class_ids": list(header.class_ids),
        "palette": [list(colour) for colour in header.palette],
    }
    return CheckpointModel(complete, state, header, dataset_meta)


def _check_backbone(path: Path, header: ModelHeader, backbone: Mapping[str, Any]) -> None:
    """The file would win in silence over the config of another model."""
    kind = str(backbone["type"]).rsplit(".", 1)[-1]
    name = backbone.get("name" if kind == BACKBONE_TYPES["timm"] else "arch")
    own = (BACKBONE_TYPES[header.family], plain(header.architecture))
    if (kind, plain(name)) != own:
        raise ValueError(
            f"{path}: is a {own[0]} {own[1]}, but the config describes a {kind} {name}: give the "
            "config it was trained with (it lies in the folder of the run)."
        )
