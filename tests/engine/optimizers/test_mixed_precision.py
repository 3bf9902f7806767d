from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mmseg_eomt.engine.optimizers import (
    LayerDecayOptimWrapperConstructor,
    MixedPrecisionOptimWrapper,
    NonFiniteError,
    resolve_precision,
    with_fused,
)
from tests.engine.engine_toys import ToySegmentor


def wrapper(model: nn.Module, **kwargs: Any) -> MixedPrecisionOptimWrapper:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return MixedPrecisionOptimWrapper(optimizer, **kwargs)


def test_auto_is_fp32_without_a_bf16_device() -> None:
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ValueError, match=r"'fp8'.*'auto', 'fp32', 'bf16', 'fp16'"):
        resolve_precision("fp8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast_works_on_a_cpu_and_learns(precision: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optim = wrapper(model, precision=precision, clip_grad=None)
    inputs = torch.randn(16, 8)
    losses = []
    for _ in range(30):
        with optim.optim_context(model):
            out = model(inputs)
            assert out.dtype == dtype
        loss = ((out.float() - inputs) ** 2).mean()
        losses.append(float(loss.detach()))
        optim.update_params(loss)
    assert losses[-1] < 0.7 * losses[0]
    assert (optim.loss_scaler is not None) == (precision == "fp16")
    assert model.weight.dtype == torch.float32


def test_clipping_bounds_the_update_and_keeps_the_norm_before_it() -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optim = MixedPrecisionOptimWrapper(optimizer)  # 0.01 is the default
    before = model.weight.detach().clone()
    optim.update_params((model(torch.ones(1, 4)) * 10).sum())
    assert optim.grad_norm is not None
    assert float(optim.grad_norm) == pytest.approx(20.0)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_fp16_clips_the_unscaled_gradient() -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optim = MixedPrecisionOptimWrapper(
        optimizer, precision="fp16", clip_grad={"max_norm": 0.5}, loss_scale={"init_scale": 128.0}
    )
    before = model.weight.detach().clone()
    optim.update_params((model(torch.ones(1, 4)) * 10).sum())
    assert float(optim.grad_norm) == pytest.approx(20.0)  # type: ignore[arg-type]
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.5, rel=1e-3)


def test_non_finite_gradient_moves_no_weight() -> None:
    model = nn.Linear(2, 1)
    optim = wrapper(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="nan"):
        optim.update_params(model(torch.full((1, 2), float("nan"))).sum())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fp16_skips_an_overflow_and_lowers_its_scale() -> None:
    model = nn.Linear(2, 1)
    optim = wrapper(model, precision="fp16", loss_scale={"init_scale": 1024.0})
    before = copy.deepcopy(model.state_dict())
    optim.update_params(model(torch.full((1, 2), float("inf"))).sum())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert optim.loss_scaler is not None
    assert optim.loss_scaler.get_scale() == 512.0


def test_scaler_state_survives_a_round_trip() -> None:
    model = nn.Linear(2, 1)
    first = wrapper(model, precision="fp16", loss_scale={"init_scale": 4096.0})
    first.update_params(model(torch.ones(1, 2)).sum())
    state = first.state_dict()
    second = wrapper(nn.Linear(2, 1), precision="fp16", loss_scale={"init_scale": 2.0})
    second.load_state_dict(state)
    assert second.loss_scaler is not None
    assert second.loss_scaler.state_dict() == state["loss_scaler"]
    assert second.optimizer.state_dict()["state"][0]["step"] == 1
    plain = wrapper(nn.Linear(2, 1), precision="bf16")
    plain.load_state_dict(state)  # precision may change on a resume
    assert "loss_scaler" in state


def test_resume_with_other_groups_says_what_to_do() -> None:
    def build(model: ToySegmentor) -> MixedPrecisionOptimWrapper:
        config = {"optimizer": {"type": "AdamW", "lr": 1e-4}}
        return LayerDecayOptimWrapperConstructor(config, {})(model)  # type: ignore[return-value]

    state = build(ToySegmentor()).state_dict()
    frozen = ToySegmentor()
    frozen.backbone.blocks[0].requires_grad_(False)
    with pytest.raises(ValueError, match="load_from"):
        build(frozen).load_state_dict(state)
    build(ToySegmentor()).load_state_dict(state)


def test_kernel_choice_is_not_taken_from_the_checkpoint() -> None:
    first = wrapper(nn.Linear(2, 1))
    state = first.state_dict()
    state["param_groups"][0]["fused"] = True
    second = wrapper(nn.Linear(2, 1))
    second.load_state_dict(state)
    assert second.optimizer.param_groups[0]["fused"] is None


def test_fused_only_where_the_device_has_it() -> None:
    config = {"type": "AdamW", "lr": 1e-4}
    assert "fused" not in with_fused(config, nn.Linear(2, 1))
    assert with_fused({**config, "fused": False}, nn.Linear(2, 1))["fused"] is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_step_skips_a_non_finite_gradient_on_the_device() -> None:
    model = nn.Linear(2, 1).cuda()
    config = with_fused({"type": "AdamW", "lr": 0.1}, model)
    assert config.pop("fused") is True
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    optim = MixedPrecisionOptimWrapper(optimizer, precision="fp32")
    before = copy.deepcopy(model.state_dict())
    optim.update_params(model(torch.full((1, 2), float("nan"), device="cuda")).sum())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optim.update_params(model(torch.ones(1, 2, device="cuda")).sum())
    assert not torch.equal(before["weight"], model.weight)


@pytest.mark.parametrize("clip", [{"type": "value", "clip_value": 1.0}, {"max_norm": 0.0}, {}])
def test_bad_clipping_is_refused(clip: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="clip_grad"):
        wrapper(nn.Linear(2, 1), clip_grad=clip)
