from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_eomt.engine.mixed_precision import (
    MixedPrecisionOptimWrapper,
    NonFiniteError,
    resolve_precision,
)
from mmseg_eomt.engine.optimizer import LayerDecayOptimWrapperConstructor, with_fused
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
    with optim.optim_context(model):
        loss = model(torch.full((1, 2), 100.0)).float().sum()  # 102,400 is too much for float16
    optim.update_params(loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert optim.loss_scaler is not None
    assert optim.loss_scaler.get_scale() == 512.0


def test_fp16_stops_where_no_scale_helps() -> None:
    """A loss that is not finite, or a gradient that is not even unscaled."""
    model = nn.Linear(2, 1)
    optim = wrapper(model, precision="fp16", loss_scale={"init_scale": 1024.0})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError):
        optim.update_params(model(torch.full((1, 2), float("inf"))).sum())
    optim = wrapper(model, precision="fp16", loss_scale={"init_scale": 4.0})
    loss = _LossWithNanGradient.apply(model.weight.sum())
    optim.update_params(loss)  # 4 -> 2
    optim.update_params(_LossWithNanGradient.apply(model.weight.sum()))  # 2 -> 1
    with pytest.raises(NonFiniteError):
        optim.update_params(_LossWithNanGradient.apply(model.weight.sum()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class _LossWithNanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


def test_a_loss_that_is_not_finite_stops_a_step_with_finite_gradients() -> None:
    model = nn.Linear(2, 1)
    optim = wrapper(model)
    before = copy.deepcopy(model.state_dict())
    loss = model(torch.ones(1, 2)).sum() + torch.tensor(float("inf"))
    with pytest.raises(NonFiniteError):
        optim.update_params(loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_checking_can_be_switched_off() -> None:
    model = nn.Linear(2, 1)
    optim = wrapper(model, stop_on_nonfinite=False)
    optim.update_params(model(torch.full((1, 2), float("nan"))).sum())
    optim.settle()
    assert model.weight.isnan().all()


@pytest.mark.parametrize("bad_step", [1, 3])
def test_late_flags_skip_on_the_device_and_stop_the_next_step(
    bad_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on CUDA, with a CPU's fused optimiser: it, too, skips where the flag is set."""
    monkeypatch.setattr(MixedPrecisionOptimWrapper, "_waits_for_no_flag", lambda self: True)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    optim = MixedPrecisionOptimWrapper(optimizer, precision="fp32")
    for step in range(bad_step + 1):
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        optim.step_number = step
        bad = step == bad_step
        optim.update_params(model(torch.full((1, 2), float("nan") if bad else 1.0)).sum())
    after = (model.state_dict(), optimizer.state_dict())
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    for index, state in before[1]["state"].items():
        assert all(
            torch.equal(after[1]["state"][index][key], value) for key, value in state.items()
        )
    with pytest.raises(NonFiniteError) as caught:
        optim.update_params(model(torch.ones(1, 2)).sum())
    assert caught.value.step == bad_step
    assert torch.equal(before[0]["weight"], model.weight)


def test_a_checkpoint_never_hides_a_skipped_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixedPrecisionOptimWrapper, "_waits_for_no_flag", lambda self: True)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    optim = MixedPrecisionOptimWrapper(optimizer, precision="fp32")
    optim.update_params(model(torch.full((1, 2), float("nan"))).sum())
    with pytest.raises(NonFiniteError):
        optim.state_dict()


class _Reads(TorchDispatchMode):
    """Counts how often the host reads a value of the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_host_reads_nothing_for_a_micro_batch(precision: str) -> None:
    """But once a step, on a CPU: a GPU copies its flag and is asked a step later."""

    def reads(*, accumulate: int, checked: bool) -> int:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        optim = MixedPrecisionOptimWrapper(
            optimizer,
            precision=precision,
            accumulative_counts=accumulate,
            stop_on_nonfinite=checked,
        )
        with _Reads() as counter:
            for _ in range(2 * accumulate):
                optim.update_params(model(torch.ones(2, 4)).sum())
        return counter.count

    base = reads(accumulate=1, checked=False)
    assert reads(accumulate=1, checked=True) == base + 2
    assert reads(accumulate=5, checked=True) == base + 2  # two steps


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
