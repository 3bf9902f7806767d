"""Compilation per block: real graphs, equal numbers, none made anew while masks anneal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mmseg_eomt.models.eomt_segmentor import compile_blocks
from tests.models.hf_eomt import JOINT, NUM_CLASSES, SIZE, make_ours

BATCH = 2


@pytest.fixture(autouse=True)
def _forget_graphs() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def train_step(model: Any, *, probs: list[float], step: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step that depends on nothing but its arguments."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (BATCH, 4, 4), generator=generator)
    labels = labels.repeat_interleave(SIZE // 4, 1).repeat_interleave(SIZE // 4, 2)
    samples = [SegDataSample() for _ in labels]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label[None])
    model.decode_head.set_mask_probs(probs)
    model.decode_head.set_step(step, 0)
    model.zero_grad(set_to_none=True)
    loss = torch.stack(
        [value for name, value in model.loss(images, samples).items() if "loss" in name]
    ).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_blocks_share_graphs_and_annealing_compiles_nothing_anew(family: str) -> None:
    model = make_ours(family).train()
    counter = CompileCounter()
    model_keys = list(model.state_dict())
    compile_blocks(model, backend=counter)
    assert list(model.state_dict()) == model_keys
    train_step(model, probs=[1.0] * JOINT)
    graphs = counter.frame_count
    assert graphs == 3, "a plain block, a joint block, and the mask product"
    for step, probability in enumerate((0.9, 0.5, 0.1)):
        train_step(model, probs=[probability] * JOINT, step=step)
    assert counter.frame_count == graphs
    train_step(model, probs=[0.0] * JOINT)
    assert counter.frame_count == graphs + 1, "a joint block without a mask"


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_step_equals_eager_step(recompute: bool) -> None:
    eager = make_ours("dinov3", recompute_upscale=recompute).train()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    for probs in ([0.5] * JOINT, [0.0] * JOINT):
        expected, gradients = train_step(eager, probs=probs)
        found, found_gradients = train_step(compiled, probs=probs)
        assert found == pytest.approx(expected, rel=1e-5)
        assert found_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*choose one of"):
        compile_blocks(make_ours("dinov2"), mode="fast")
