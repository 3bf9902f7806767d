"""The teacher's backbone as files that others load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmseg.registry import HOOKS
from safetensors.torch import save as to_safetensors

from dinov2_pretraining.engine.meta_layout import to_meta_layout
from mmseg_eomt.checkpoints.backbone_weights import our_layout
from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.checkpoints.foreign.foreign_model import infer_sizes
from mmseg_eomt.models.backbones import DINOv2, DINOv3
from mmseg_eomt.safe_write import replaced

OURS = "backbone.safetensors"
META = "backbone_meta.pth"


@HOOKS.register_module()
class ExportBackboneHook(Hook):  # type: ignore[misc]
    """Writes `exported/backbone.safetensors` and `exported/backbone_meta.pth` in the run folder.

    With each training checkpoint and at the end of training. The first is for
    ``--backbone-weights`` of EoMT; the second has the names of Meta's own files, with the mask
    token, so that whatever reads those reads it too (EoMT does). A ``TimmViT`` has the first one
    only.

    Args:
        folder (str): Folder inside the run folder. Defaults to 'exported'.
    """

    def __init__(self, *, folder: str = "exported") -> None:
        self.folder = folder
        self._exported = -1

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Exports the teacher that the checkpoint holds."""
        self._export(runner, int(checkpoint["meta"]["iter"]))

    def after_train(self, runner: Any) -> None:
        """Exports the last teacher."""
        self._export(runner, runner.iter)

    def _export(self, runner: Any, step: int) -> None:
        if step == self._exported or not is_main_process():
            return
        folder = Path(runner.work_dir) / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = unwrap(runner.model)
        network = model.teacher.encoder
        write_backbone(folder / OURS, network.backbone)
        if is_meta_model(network.backbone):
            weights = to_meta_layout(network.backbone.vit, network.mask_token)
            with replaced(folder / META) as file:
                torch.save(weights, file)
        elif self._exported < 0:
            print_log(
                f"{type(network.backbone).__name__} is none of Meta's models: {folder / META} is "
                "not written.",
                logger="current",
                level=logging.INFO,
            )
        self._exported = step


def is_meta_model(backbone: Any) -> bool:
    """Whether Meta's layout, and the sizes of its models, apply."""
    return isinstance(backbone, DINOv2 | DINOv3)


def write_backbone(path: Path, backbone: Any) -> None:
    """Write a backbone as a file for ``backbone_weights``, as a whole or not at all.

    Args:
        path: A ``.safetensors`` file.
        backbone (ViTBackbone): Whose weights are written.

    Raises:
        OSError: If it cannot be written; an older file stays.
    """
    weights = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in backbone.vit.state_dict().items()
    }
    sizes = None
    if is_meta_model(backbone):
        sizes = infer_sizes(weights, num_heads=backbone.num_heads, origin=str(path))
    content = to_safetensors(*our_layout(weights, sizes))
    with replaced(path) as file:
        file.write(content)
