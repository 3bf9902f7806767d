"""TensorRT-RTX parses and builds what we export, ahead of time and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmseg_eomt import export_onnx
from mmseg_eomt.deploy.tensorrt.build import read_metadata, serialise
from mmseg_eomt.deploy.tensorrt.record import Size, profile_of
from tests.deploy.lively import lively_weights, picture
from tests.deploy.tensorrt.rtx import import_rtx

ALL = "batch,height,width"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(
    ("dynamic", "largest", "options"),
    [
        ("", None, {}),
        ("batch", Size(4, 40, 56), {}),
        (ALL, Size(4, 64, 80), {}),
        ("", None, {"include_preprocessing": True}),
        (ALL, Size(2, 64, 80), {"include_preprocessing": True, "outputs": "labels"}),
    ],
    ids=["static", "batch", "any-size", "static-bytes", "any-size-bytes"],
)
def test_rtx_builds_exported_graphs(
    family: str,
    precision: str,
    dynamic: str,
    largest: Size | None,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    rtx = import_rtx()
    lively_weights(tmp_path / "w.safetensors", family)
    out = tmp_path / "m.onnx"
    export_onnx(
        out,
        checkpoint=tmp_path / "w.safetensors",
        height=40,
        width=56,
        dynamic=dynamic,
        precision=precision,
        verify=False,
        images=[picture((40, 56), seed=seed) for seed in range(2)],  # ranges of int8
        **options,
    )
    metadata = read_metadata(out)
    assert metadata is not None
    smallest = Size(1, 24, 32) if "height" in metadata.dynamic else None
    profile = profile_of(metadata, minimum=smallest, maximum=largest)
    engine, used = serialise(rtx, out, profiles={"images": profile})
    assert len(engine) > 10_000
    assert used == {"images": profile}
