"""What must not change the step, and what may: recomputation, micro-batches, dropped paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from pretraining_toys import ARCH, GLOBAL, batch, tiny_model
from torch import Tensor

from dinov2_pretraining.models.stochastic_depth import run_block_on_some


def step(model: Any, data: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a batch."""
    model.train()
    model.zero_grad()
    losses = model(**model.data_preprocessor(data), mode="loss")
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("family", ["DINOv2", "DINOv3"])
def test_recomputation_changes_neither_loss_nor_gradient(family: str) -> None:
    found = []
    for with_cp in (False, True):
        backbone = {"type": family, "arch": ARCH, "image_size": GLOBAL, "with_cp": with_cp}
        found.append(step(tiny_model(family, backbone=backbone), batch(3)))
    (losses, gradients), (other_losses, others) = found
    assert gradients.keys() == others.keys()
    for name, value in losses.items():
        assert torch.equal(value, other_losses[name]), name
    for name, value in gradients.items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-7)


def test_bfloat16_makes_nearly_the_same_step() -> None:
    model = tiny_model()
    losses, gradients = step(model, batch(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, roughly = step(model, batch(3))
    for name, value in losses.items():
        assert rough[name].item() == pytest.approx(value.item(), rel=0.02), name
    flat, other = (torch.cat([g.flatten() for g in x.values()]) for x in (gradients, roughly))
    assert other.dtype == torch.float32
    assert float(torch.cosine_similarity(flat, other, dim=0)) > 0.99
    assert not torch.equal(flat, other)


def test_micro_batches_add_up_to_the_step_of_one_batch() -> None:
    """Without KoLeo, which sees the images of a micro-batch alone."""
    whole, parts = (tiny_model(koleo_weight=0.0) for _ in range(2))
    _, wanted = step(whole, batch(4))
    first, second = (step(parts, batch(2, first=first))[1] for first in (0, 2))
    for name, value in wanted.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=1e-4, atol=1e-6)
    for model in (whole, parts):
        model.update_teacher(0.9)
    for one, other in zip(whole.centres, parts.centres, strict=True):
        assert float(one.centre.abs().max()) > 0
        torch.testing.assert_close(one.centre, other.centre, rtol=1e-5, atol=1e-7)


def test_the_teacher_learns_by_averaging_alone() -> None:
    model = tiny_model(drop_path_rate=0.5)
    _, gradients = step(model, batch(3))
    assert all(name.startswith("student.") for name in gradients)
    # Each part of the student takes part: the mask token, both heads' layers, every block.
    assert gradients.keys() == {f"student.{name}" for name, _ in model.student.named_parameters()}
    assert model.student.training
    assert not model.teacher.training
    before = {name: value.clone() for name, value in model.teacher.named_parameters()}
    student = dict(model.student.named_parameters())
    for value in student.values():
        value.data += 1.0
    model.update_teacher(0.75)
    for name, value in model.teacher.named_parameters():
        wanted = before[name] * 0.75 + student[name].data * 0.25
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["DINOv2", "DINOv3"])
def test_dropped_paths_keep_their_mean(family: str) -> None:
    backbone: Any = MODELS.build({"type": family, "arch": ARCH, "image_size": GLOBAL}).eval()
    block = backbone.vit.blocks[0]
    patches, grid = backbone.embed_patches(torch.randn(4, 3, GLOBAL, GLOBAL))
    tokens = backbone.add_prefix(patches, grid).detach()
    inputs = {
        "num_prefix_tokens": backbone.num_prefix_tokens,
        "rope": backbone.rope_of(grid, tokens.device),
    }
    with torch.no_grad():
        whole = backbone.run_block(block, tokens, num_queries=0, **inputs)
        same = run_block_on_some(block, tokens, drop_rate=0.0, **inputs)
        torch.testing.assert_close(same, whole, rtol=1e-5, atol=1e-6)
        # The first branch alone: the second is not linear in what the first adds.
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        attended = backbone.run_block(block, tokens, num_queries=0, **inputs) - tokens
        draws = [run_block_on_some(block, tokens, drop_rate=0.5, **inputs) for _ in range(600)]
    changes = torch.stack(draws) - tokens
    kept = (changes.flatten(2).abs().amax(-1) > 0).float()
    assert float(kept.mean()) == pytest.approx(0.5, abs=1e-6)
    assert float((kept.mean(0) - 0.5).abs().max()) < 0.1
    assert float((changes.mean(0) - attended).abs().max()) < 0.2 * float(attended.abs().max())
