"""The exported files are the teacher, for both families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmseg.registry import MODELS
from pretraining_toys import ARCH, GLOBAL, model_cfg, runner

from mmseg_eomt.checkpoints.describe import unwrap


@pytest.mark.parametrize("family", ["DINOv2", "DINOv3"])
@pytest.mark.parametrize("gated", [False, True])
def test_both_layouts_load_with_the_values_of_the_teacher(
    family: str, gated: bool, tmp_path: Path
) -> None:
    arch = {**ARCH, "gated_mlp": gated}
    backbone = {"type": family, "arch": arch, "image_size": GLOBAL}
    made = runner(tmp_path, steps=2, model=model_cfg(backbone=backbone), every=100)
    made.train()
    teacher = unwrap(made.model).teacher.encoder
    student = unwrap(made.model).student.encoder
    images = torch.randn(2, 3, GLOBAL, GLOBAL)
    for name in ("backbone.safetensors", "backbone_meta.pth"):
        stored = str(tmp_path / "exported" / name)
        loaded = MODELS.build({**backbone, "pretrained": stored}).eval()
        loaded.init_weights()
        wanted = teacher.backbone.state_dict()
        assert loaded.state_dict().keys() == wanted.keys()
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, wanted[key]), key
        patches, _ = loaded.embed_patches(images)
        assert torch.equal(patches, teacher.backbone.embed_patches(images)[0])
        assert not torch.equal(patches, student.backbone.embed_patches(images)[0])
    meta = torch.load(tmp_path / "exported" / "backbone_meta.pth", weights_only=True)
    assert torch.equal(meta["mask_token"].flatten(), teacher.mask_token.data.flatten())
