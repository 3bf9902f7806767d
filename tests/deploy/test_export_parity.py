"""An exported file against transformers' EoMT with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_eomt import SegmentationModel, export_onnx
from tests.apis.tiny import tiny_header
from tests.checkpoints.layouts import oracle_labels
from tests.deploy.exporting import run_file
from tests.deploy.lively import picture
from tests.models.hf_eomt import (
    DEPTH,
    DIMS,
    HEADS,
    JOINT,
    NUM_CLASSES,
    NUM_QUERIES,
    SIZE,
    make_pair,
)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_labels_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    ours, oracle = make_pair(family)
    oracle.attn_mask_probs.zero_()
    mean, std = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
    header = tiny_header(
        family=family, patch_size=16, image_size=(SIZE, SIZE), test_size=(SIZE, SIZE),
        architecture={"embed_dims": DIMS, "depth": DEPTH, "num_heads": HEADS, "patch_size": 16},
        num_queries=NUM_QUERIES, num_joint_blocks=JOINT, num_upscale_blocks=2,
        classes=tuple("abcdef"), class_ids=tuple(range(NUM_CLASSES)), palette=((0, 0, 0),) * 6,
        mean=tuple(255 * value for value in mean), std=tuple(255 * value for value in std),
    )  # fmt: skip
    with torch.no_grad():
        # Random queries would all choose one class.
        for head, classes in ((ours.decode_head, "class_head"), (oracle, "class_predictor")):
            head.query.weight.mul_(20)
            getattr(head, classes).weight.mul_(8)
            getattr(head, classes).bias[-1] = -9.0
    out = export_onnx(
        tmp_path / "m.onnx", checkpoint=SegmentationModel(ours, header),
        include_preprocessing=True, dynamic="",
    ).path  # fmt: skip
    for seed in range(3):
        pixels = np.asarray(picture((SIZE, SIZE), seed=seed))
        expected = oracle_labels(oracle, pixels, mean=mean, std=std).numpy()
        found = run_file(out, pixels[None])["labels"][0]
        assert len(np.unique(expected)) >= 3
        assert (found == expected).mean() >= 0.9999
