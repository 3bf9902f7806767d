"""A model that was made fast says the same as before."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from mmseg_eomt import optimize_for_inference
from mmseg_eomt.apis.inference import SegmentationModel, build_segmentor
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from tests.apis.tiny import ARCH, tiny_header

SIZE = (48, 80)


def _model(family: str = "dinov3") -> SegmentationModel:
    """A model whose queries are sure of their classes and masks, as trained ones are."""
    torch.manual_seed(0)
    header = tiny_header(family=family, architecture={**ARCH, "embed_dims": 32})
    segmentor: Any = build_segmentor(header)
    with torch.no_grad():
        for parameter in segmentor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        segmentor.decode_head.class_head.weight.normal_(std=2.0)
        segmentor.decode_head.mask_head[-1].weight.mul_(4.0)
    return SegmentationModel(segmentor, header)


def _image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)


def _logits(model: SegmentationModel) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        masks, classes = model.segmentor.network(_image()[None, :, :32, :32] / 64.0 - 2)
    return masks.float(), classes.float()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_folded_weights_change_nothing_but_rounding(family: str, channels_last: bool) -> None:
    plain, fast = _model(family), _model(family)
    assert optimize_for_inference(fast, channels_last=channels_last) is fast
    assert any("folded" in line for line in fast.segmentor.optimizations)
    names = [name for name, _ in fast.segmentor.named_parameters()]
    assert not [n for n in names if "gamma" in n or "q_bias" in n], "nothing left to fold"
    for got, expected in zip(_logits(fast), _logits(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    expected = plain.predict(_image())
    assert len(expected.unique()) > 1, "a plain picture would hide every fault"
    assert (fast.predict(_image()) == expected).float().mean() > 0.999


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_the_label_map(dtype: str) -> None:
    plain, fast = _model(), optimize_for_inference(_model(), dtype=dtype)
    assert {p.dtype for p in fast.segmentor.parameters()} == {
        {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    }
    agreement = (fast.predict(_image()) == plain.predict(_image())).float().mean()
    assert agreement >= 0.99, agreement


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_a_compiled_network_gives_the_same_label_map(family: str) -> None:
    plain, fast = _model(family), optimize_for_inference(_model(family), compile="default")
    for got, expected in zip(_logits(fast), _logits(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    agreement = (fast.predict(_image()) == plain.predict(_image())).float().mean()
    assert agreement > 0.999


def test_a_segmentor_alone_is_taken() -> None:
    segmentor = _model().segmentor
    assert isinstance(optimize_for_inference(segmentor), EoMTSegmentor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "'int8'.*'bf16'"),
        ({"compile": "fastest"}, "'fastest'.*'max-autotune'"),
        ({"cuda_graphs": True}, "compile='default'"),
        ({"cuda_graphs": True, "compile": "default"}, "on cpu.*GPU"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(_model(), **arguments)


def test_optimising_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        optimize_for_inference(optimize_for_inference(_model()))
