"""Every way of exporting, run by ONNX Runtime and compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from mmseg_eomt import SegmentationModel, export_onnx
from tests.deploy.exporting import agreement, check_operators
from tests.deploy.lively import lively_header, lively_segmentor

FAMILIES = ["dinov2", "dinov3"]
DYNAMIC = ["", "batch", "batch,height,width"]
SIZES = [(32, 32), (45, 70)]
LEAST = {"fp32": 0.9999, "fp16": 0.995}

# Other models, each exported with a batch and sides that are open.
KINDS: dict[str, dict[str, Any]] = {
    "silu": {"activation": "silu"},
    "gated": {"architecture": {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": 8,
                               "gated_mlp": True}},
    "patch 14": {"family": "dinov2", "patch_size": 14, "image_size": (28, 28),
                 "test_size": (28, 28),
                 "architecture": {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": 14}},
    "patch 16": {"patch_size": 16, "num_upscale_blocks": 2,
                 "architecture": {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": 16}},
    "no registers": {"family": "dinov2", "backbone_args": {"registers": False}},
    "four channels": {"in_channels": 4, "mean": (120.0, 110.0, 100.0, 90.0), "std": (60.0,) * 4},
    "mask features of patch size": {"num_upscale_blocks": 3},
    "timm ViT": {"family": "timm", "architecture": "vit_tiny_patch16_224", "patch_size": 16,
                 "backbone_args": {"model_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2}}},
    "timm EVA": {"family": "timm", "architecture": "eva02_tiny_patch14_224", "patch_size": 14,
                 "image_size": (28, 28), "test_size": (28, 28),
                 "backbone_args": {"model_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2}}},
}  # fmt: skip


def model_of(family: str = "dinov3", **changes: Any) -> Any:
    header = lively_header(family, **changes)
    # With this seed all of them see three classes at all sizes here.
    return SegmentationModel(lively_segmentor(header, seed=1), header)


def export(tmp_path: Path, model: Any, **arguments: Any) -> Path:
    out: Path = export_onnx(tmp_path / "model.onnx", checkpoint=model, **arguments).path
    return out


@pytest.mark.parametrize(
    ("family", "dynamic", "size", "precision"),
    [
        ("dinov3", "", (45, 70), "fp32"),
        ("dinov2", "batch,height,width", (32, 32), "fp32"),
        ("dinov3", "batch", (45, 70), "fp16"),
    ],
)
def test_labels_are_those_of_pytorch(
    tmp_path: Path, family: str, dynamic: str, size: tuple[int, int], precision: str
) -> None:
    check(tmp_path, model_of(family), dynamic, size, batch=2, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(LEAST))
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix_of_tiny_models(
    tmp_path: Path, family: str, dynamic: str, size: tuple[int, int], batch: int, precision: str
) -> None:
    check(tmp_path, model_of(family), dynamic, size, batch=batch, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(LEAST))
@pytest.mark.parametrize(
    ("dynamic", "size"), [("", (128, 96)), ("batch", (128, 128)), ("batch,height,width", (96, 112))]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix_of_small_models(
    tmp_path: Path, family: str, dynamic: str, size: tuple[int, int], precision: str
) -> None:
    patch = {"dinov2": 14, "dinov3": 16}[family]
    model = model_of(
        family, architecture="vits14" if family == "dinov2" else "vits16", patch_size=patch,
        image_size=(4 * patch,) * 2, test_size=(4 * patch,) * 2, num_joint_blocks=3,
        num_upscale_blocks=2, num_queries=20,
    )  # fmt: skip
    check(tmp_path, model, dynamic, size, batch=2, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_model_is_exported(tmp_path: Path, kind: str) -> None:
    changes = dict(KINDS[kind])
    model = model_of(changes.pop("family", "dinov3"), **changes)
    check(tmp_path, model, "batch,height,width", (48, 70), batch=2, precision="fp32")


def check(
    tmp_path: Path, model: Any, dynamic: str, size: tuple[int, int], *, batch: int, precision: str
) -> None:
    path = export(
        tmp_path, model, dynamic=dynamic, height=size[0], width=size[1], batch_size=batch,
        precision=precision,
    )  # fmt: skip
    check_operators(onnx.load(path))
    least = LEAST[precision]
    batches = (1, 2, batch) if "batch" in dynamic else (batch,)
    for images in batches:
        assert agreement(path, model.segmentor, batch=images, size=size) >= least
    if "height" in dynamic:
        for other in ((size[0] + 9, size[1] - 3), (75, 33)):
            assert agreement(path, model.segmentor, batch=2, size=other) >= least
